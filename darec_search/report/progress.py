"""Pictures of how the search got on, what its candidates were worth when trained again, and what quality costs."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from darec_search.report.drawing import ACCENT, BAD, INK, MUTED, PANEL, SERIAL, SOFT, new_figure
from darec_search.report.facts import Candidate, Facts, Priced
from trainer.architecture import FIXED_ARMS


def search_picture(facts: Facts) -> Figure | None:
    """Trials in the order of their ends, the best so far, what was believed, and what random search would have got."""
    ended = facts.searched_in_order
    scored = [(i, trial, trial.objective) for i, trial in enumerate(ended, 1) if trial.objective is not None]
    if not scored:
        return None
    figure, axes = new_figure(3.3)
    best = [max(value for _, _, value in scored[: k + 1]) for k in range(len(scored))]
    axes.step([i for i, _, _ in scored] + [len(ended)], [*best, best[-1]], where="post", color=ACCENT, lw=2)
    for grid, colour in ((True, SOFT), (False, ACCENT)):
        chosen = [(i, value) for i, trial, value in scored if (trial.spec.stage == "weights") == grid]
        x, y = [i for i, _ in chosen], [value for _, value in chosen]
        axes.scatter(x, y, s=20, color=colour, edgecolor=PANEL, lw=0.7, zorder=3)
    _insight(axes, facts)
    failed = [i for i, trial in enumerate(ended, 1) if trial.objective is None and trial.status != "pruned"]
    # At the lower edge, whatever the values are: a failure has none.
    axes.plot(failed, [0.02] * len(failed), "x", ms=5, mew=1.6, color=BAD, transform=axes.get_xaxis_transform())
    # The first beliefs' intervals are far wider than all values: they may leave the picture.
    lowest, highest = min(value for _, _, value in scored), max(value for _, _, value in scored)
    margin = 0.25 * (highest - lowest) or 0.1 * abs(highest) or 0.01
    limits = {"xlim": (0.3, len(ended) + 0.7), "ylim": (lowest - margin, highest + margin)}
    axes.set(xlabel="trials ended", ylabel="validation MRR", **limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _insight(axes: Axes, facts: Facts) -> None:
    """Believed values and the band of random search, where the search went by the MRR that is drawn."""
    insight = facts.insight
    if insight is None or insight.objective != "mrr":
        return
    # Both count results with a value; the picture counts trials that ended.
    at = facts.places_of_values
    count = min(len(at), len(insight.random.median))
    band = (insight.random.low[:count], insight.random.high[:count])
    axes.fill_between(at[:count], *band, color=MUTED, alpha=0.16, lw=0, zorder=0)
    axes.plot(at[:count], insight.random.median[:count], color=MUTED, lw=1.2, ls=":", zorder=1)
    beliefs = [belief for belief in insight.beliefs if belief.trials <= len(at)]
    x, y = [at[belief.trials - 1] for belief in beliefs], [belief.mean for belief in beliefs]
    errors = [[b.mean - b.low for b in beliefs], [b.high - b.mean for b in beliefs]]
    axes.errorbar(x, y, yerr=errors, fmt="s-", ms=4, lw=1.3, color=SERIAL, elinewidth=1.1, zorder=4)


def retests_picture(facts: Facts) -> Figure | None:
    """Every seed of every candidate as a dot, its value with the interval, what the search had promised."""
    candidates = sorted(facts.candidates, key=lambda candidate: candidate.value)
    if not candidates:
        return None
    figure, axes = new_figure(0.9 + 0.42 * len(candidates))
    for y, candidate in enumerate(candidates):
        won = facts.winner is not None and candidate.arm == facts.winner.arm
        colour = ACCENT if won else MUTED if candidate.arm in FIXED_ARMS else SERIAL
        _candidate(axes, y, candidate, colour)
    labels = [
        f"{candidate.name} ★" if facts.winner and candidate.arm == facts.winner.arm else candidate.name
        for candidate in candidates
    ]
    axes.set_yticks(range(len(candidates)), labels)
    axes.set(xlabel=f"validation MRR, {_bars(candidates[0])}", ylim=(-0.6, len(candidates) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    return figure


def _bars(candidate: Candidate) -> str:
    return "bars: 90 % interval" if candidate.interval else "bars: standard error"


def _candidate(axes: Axes, y: int, candidate: Candidate, colour: str) -> None:
    axes.scatter(candidate.values, [y] * len(candidate.values), s=18, color=colour, alpha=0.45, lw=0)
    low, high = candidate.bounds
    axes.plot([low, high], [y, y], "-", color=colour, lw=2)
    axes.plot([low, high], [y, y], "|", color=colour, ms=8, mew=2)
    axes.plot(candidate.value, y, "o", ms=7, color=colour)
    if candidate.search_value is not None:
        axes.plot(candidate.search_value, y, "D", ms=5.5, mfc="none", mec=INK, mew=1.1)


def cost_picture(facts: Facts) -> Figure | None:
    """Validation MRR over what a training cost, and the trials that none beats in both."""
    priced = facts.priced
    if len(priced) < 2:
        return None
    figure, axes = new_figure(3.0)
    axes.scatter([p.cost for p in priced], [p.mrr for p in priced], s=22, color=SOFT, edgecolor=PANEL, lw=0.7)
    front = pareto(priced)
    axes.step([p.cost for p in front], [p.mrr for p in front], where="post", color=ACCENT, lw=1.8)
    x, y = [p.cost for p in front], [p.mrr for p in front]
    axes.scatter(x, y, s=34, color=ACCENT, edgecolor=PANEL, lw=0.7, zorder=3)
    apart, labelled = 0.04 * (max(p.cost for p in priced) - min(p.cost for p in priced)), -1.0
    for point in front:
        if point.cost - labelled < apart:
            continue  # its number would lie on the last one's; the table has it
        labelled = point.cost
        axes.annotate(str(point.number), (point.cost, point.mrr), xytext=(-3, 4), textcoords="offset points",
                      ha="right", fontsize=8, color=INK)  # fmt: skip
    axes.set(xlabel=f"{facts.cost_unit} of a training", ylabel="validation MRR")
    axes.margins(x=0.06, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def pareto(priced: list[Priced]) -> list[Priced]:
    """Those that no other beats in cost and MRR, by rising cost."""
    front: list[Priced] = []
    for point in sorted(priced, key=lambda p: (p.cost, -p.mrr)):
        if not front or point.mrr > front[-1].mrr:
            front.append(point)
    return front
