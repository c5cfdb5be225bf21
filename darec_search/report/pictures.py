"""The pictures of a report, drawn with matplotlib's objects (no pyplot, no global figure).

Every picture is drawn in the colours of `COLOURS`; the page replaces them by CSS variables, so that one drawing serves
light and dark. Pictures are narrow enough to be read on a phone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from darec_search.report.facts import SEARCH_STAGES, Facts
from darec_search.study import Trial
from trainer.architecture import FIXED_ARMS, SLOTS, Architecture
from trainer.training.result import RunResult

COLOURS = {
    "ink": "#1d2733",
    "muted": "#65717e",
    "line": "#dfe4ea",
    "panel": "#fffffe",
    "serial": "#2f6db5",
    "parallel": "#e08a1e",
    "accent": "#0f8b76",
    "bad": "#c8442f",
    "soft": "#aab5c0",
}
INK, MUTED, LINE, PANEL = (COLOURS[name] for name in ("ink", "muted", "line", "panel"))
SERIAL, PARALLEL, ACCENT, BAD, SOFT = (COLOURS[name] for name in ("serial", "parallel", "accent", "bad", "soft"))
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "darec-search",
    "text.parse_math": False,
}
_WIDTH = 4.9  # inches


def pictures(facts: Facts) -> dict[str, Figure]:
    """All pictures that the study has data for, by file name."""
    with mpl.rc_context(_STYLE):
        drawn = {
            "best_so_far": _best_so_far(facts),
            "architecture": _architecture(facts.leader) if facts.leader else None,
            "retests": _retests(facts),
            "weights": _weights(facts),
            "timeline": _timeline(facts),
        }
    return {name: figure for name, figure in drawn.items() if figure}


def architecture_picture(architecture: Architecture, path: Path) -> None:
    """Draw the adapters of every DALayer by slot, and save them in the format of the path's suffix."""
    with mpl.rc_context(_STYLE):
        save(_architecture(architecture), path)


def save(figure: Figure, path: Path) -> None:
    """Save a picture on a light ground."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with mpl.rc_context(_STYLE):
        figure.savefig(path, dpi=160, facecolor=PANEL, metadata=metadata)


def inline_svg(figure: Figure, label: str) -> str:
    """A picture as an SVG element whose colours are CSS variables and whose text is text.

    Args:
        figure: one of `pictures`.
        label: what a screen reader says; already escaped.
    """
    buffer = StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'<svg[^>]*?viewBox="([^"]+)"[^>]*>', f'<svg viewBox="\\1" role="img" aria-label="{label}">', svg, count=1
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _figure(height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _best_so_far(facts: Facts) -> Figure | None:
    """Validation MRR of every trial of the search in the order of their ends, and the best up to then."""
    ended = [(trial, result) for trial, result in facts.ended if trial.spec.stage in SEARCH_STAGES]
    scored = [(i, trial, trial.objective) for i, (trial, _) in enumerate(ended, 1) if trial.objective is not None]
    if not scored:
        return None
    figure, axes = _figure(3.1)
    best = [max(value for _, _, value in scored[: k + 1]) for k in range(len(scored))]
    axes.step([i for i, _, _ in scored] + [len(ended)], [*best, best[-1]], where="post", color=ACCENT, lw=2)
    for grid, colour in ((True, SOFT), (False, ACCENT)):
        chosen = [(i, value) for i, trial, value in scored if (trial.spec.stage == "weights") == grid]
        x, y = [i for i, _ in chosen], [value for _, value in chosen]
        axes.scatter(x, y, s=26, color=colour, edgecolor=PANEL, lw=0.7, zorder=3)
    failed = [i for i, (trial, _) in enumerate(ended, 1) if trial.objective is None]
    # At the lower edge, whatever the values are: a failure has none.
    axes.plot(failed, [0.02] * len(failed), "x", ms=5, mew=1.6, color=BAD, transform=axes.get_xaxis_transform())
    axes.set(xlabel="trials ended", ylabel="validation MRR")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _architecture(architecture: Architecture) -> Figure:
    """Layers from top to bottom, slots from left to right."""
    layers = architecture.layers
    cell = min(0.52, max(0.2, 4.4 / layers))
    figure, axes = _figure(0.75 + cell * layers)
    for layer in range(layers):
        for column, kind in enumerate(architecture.layer(layer).values()):
            _cell(axes, column, layer, kind)
    axes.set(xlim=(-0.5, len(SLOTS) - 0.5), ylim=(layers - 0.5, -0.5))
    axes.set_xticks(range(len(SLOTS)), [f"{slot}\nadapter" for slot in SLOTS])
    axes.xaxis.tick_top()
    axes.set_yticks(range(layers), [f"L{layer}" for layer in range(layers)])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _cell(axes: Axes, column: int, layer: int, kind: str) -> None:
    colour = PARALLEL if kind == "parallel" else SERIAL
    box = FancyBboxPatch(
        (column - 0.44, layer - 0.36), 0.88, 0.72, boxstyle="round,pad=0,rounding_size=0.12",
        mutation_aspect=2.2, facecolor=colour, edgecolor="none",
    )  # fmt: skip
    axes.add_patch(box)
    axes.text(column, layer, kind, ha="center", va="center_baseline", color=PANEL, fontsize=8.5, fontweight="bold")


def _retests(facts: Facts) -> Figure | None:
    """Every seed of every candidate as a dot, mean and standard error beside it, the best at the top."""
    candidates = sorted(facts.candidates, key=lambda candidate: candidate.mean)
    if not candidates:
        return None
    figure, axes = _figure(0.9 + 0.42 * len(candidates))
    for y, candidate in enumerate(candidates):
        won = facts.winner is not None and candidate.arm == facts.winner.arm
        colour = ACCENT if won else MUTED if candidate.arm in FIXED_ARMS else SERIAL
        axes.scatter(candidate.values, [y] * len(candidate.values), s=18, color=colour, alpha=0.45, lw=0)
        axes.errorbar(candidate.mean, y, xerr=candidate.stderr, fmt="o", ms=7, color=colour, elinewidth=2, capsize=4)
    labels = [
        f"{candidate.name} ★" if facts.winner and candidate.arm == facts.winner.arm else candidate.name
        for candidate in candidates
    ]
    axes.set_yticks(range(len(candidates)), labels)
    axes.set(xlabel="validation MRR: mean ± standard error, dots are seeds", ylim=(-0.6, len(candidates) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    return figure


def _weights(facts: Facts) -> Figure | None:
    """One panel per searched loss weight: every trial, and the mean of each level."""
    searched = facts.study.config.search.weights.searched()
    trials = [trial for trial in facts.searched if trial.objective is not None]
    # A staged search compares the levels at one architecture; later trials all share the chosen level.
    trials = [trial for trial in trials if trial.spec.stage == "weights"] or trials
    names = [name for name, levels in searched.items() if len(levels) > 1]
    if not names or not trials:
        return None
    figure = Figure(figsize=(_WIDTH, 2.6))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
        _weight(axes, index, name, searched[name], trials)
    panels[0].set_ylabel("validation MRR")
    return figure


def _weight(axes: Axes, index: int, name: str, levels: Sequence[float], trials: Sequence[Trial]) -> None:
    means = []
    for x, level in enumerate(levels):
        values = [trial.objective or 0.0 for trial in trials if trial.spec.weights.get(name) == level]
        axes.scatter([x] * len(values), values, s=20, color=SOFT, lw=0, zorder=2)
        if values:
            means.append((x, sum(values) / len(values)))
    if means:
        axes.plot(*zip(*means, strict=True), "o-", color=ACCENT, ms=6, lw=1.8, zorder=3)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set(xlabel=f"λ {name}", xlim=(-0.5, len(levels) - 0.5))
    axes.grid(axis="x", visible=False)


def _timeline(facts: Facts) -> Figure | None:
    """Who ran when: one row a lane, one bar a trial."""
    bars = [(_lane(trial.result), trial, trial.result) for trial in facts.trials if trial.result]
    bars = [bar for bar in bars if bar[2].cost.ended_at > 0]
    if not bars:
        return None
    lanes = sorted({lane for lane, _, _ in bars})
    runs = [result for _, _, result in bars] + ([facts.final] if facts.final else [])
    zero = min(result.cost.started_at for result in runs)
    span = max(result.cost.ended_at for result in runs) - zero
    unit, name = (3600.0, "hours") if span > 7200 else (60.0, "minutes") if span > 180 else (1.0, "seconds")
    rows = [*lanes, *(["final run"] if facts.final else [])]
    figure, axes = _figure(0.85 + 0.34 * len(rows), width=9.0)
    for lane, trial, result in bars:
        label = str(trial.spec.number) if result.cost.ended_at - result.cost.started_at > 0.018 * span else ""
        _bar(axes, lanes.index(lane), result, (zero, unit), _bar_colour(trial), label)
    if facts.final:
        _bar(axes, len(lanes), facts.final, (zero, unit), PARALLEL, "")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=f"{name} since the first trial began", ylim=(len(rows) - 0.4, -0.6), xlim=(0, None))
    axes.grid(axis="y", visible=False)
    return figure


def _bar(axes: Axes, row: int, result: RunResult, clock: tuple[float, float], colour: str, label: str) -> None:
    zero, unit = clock
    left, right = ((at - zero) / unit for at in (result.cost.started_at, result.cost.ended_at))
    axes.barh(row, right - left, left=left, height=0.68, color=colour, edgecolor=PANEL, linewidth=1)
    axes.text((left + right) / 2, row, label, ha="center", va="center_baseline", color=PANEL, fontsize=7.5)


def _lane(result: RunResult) -> str:
    """The lane's name, `lane-1` of `lane-1/pid-7@node`: a lane whose worker was replaced is still the same lane."""
    return (result.worker or "?").partition("/")[0]


def _bar_colour(trial: Trial) -> str:
    if trial.objective is None:
        return BAD
    return {"weights": SOFT, "retest": SERIAL, "full": PARALLEL}.get(trial.spec.stage, ACCENT)
