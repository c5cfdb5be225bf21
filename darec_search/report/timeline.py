"""The timeline: who ran what when, and who waited."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darec_search.report.drawing import ACCENT, BAD, MUTED, PANEL, PARALLEL, SERIAL, SOFT, new_figure
from darec_search.report.facts import Facts
from darec_search.study import Trial
from trainer.training.result import RunResult

FINAL_RUN = "final run"


@dataclass(frozen=True)
class Bar:
    """One run on a lane. Times are Unix seconds."""

    started: float
    ended: float
    label: str
    colour: str
    pruned: bool = False


def lanes(facts: Facts) -> dict[str, list[Bar]]:
    """Runs by lane in the order of time; lanes that are on several nodes have the node's name before theirs."""
    runs = [(trial, trial.result) for trial in facts.trials if trial.result and trial.result.cost.ended_at > 0]
    several = len({_node(result) for _, result in runs}) > 1
    rows: dict[str, list[Bar]] = defaultdict(list)
    for trial, result in sorted(runs, key=lambda run: run[1].cost.started_at):
        name = f"{_node(result)} · {_lane(result)}" if several and _node(result) else _lane(result)
        bar = Bar(result.cost.started_at, result.cost.ended_at, str(trial.spec.number), _colour(trial),
                  trial.status == "pruned")  # fmt: skip
        rows[name].append(bar)
    found = {name: rows[name] for name in sorted(rows)}
    if facts.final and rows:
        found[FINAL_RUN] = [Bar(facts.final.cost.started_at, facts.final.cost.ended_at, "", PARALLEL)]
    return found


def busy(bars: list[Bar]) -> float:
    """Share of the time between a lane's first start and last end in which it ran something."""
    span = max(bar.ended for bar in bars) - min(bar.started for bar in bars)
    return min(1.0, sum(bar.ended - bar.started for bar in bars) / span) if span > 0 else 1.0


def timeline_picture(facts: Facts) -> Figure | None:
    """One row a lane, one bar a run; a thin line between bars is a lane that waits."""
    rows = lanes(facts)
    if not rows:
        return None
    bars = [bar for row in rows.values() for bar in row]
    zero, span = min(bar.started for bar in bars), max(bar.ended for bar in bars) - min(bar.started for bar in bars)
    unit, name = (3600.0, "hours") if span > 7200 else (60.0, "minutes") if span > 180 else (1.0, "seconds")
    figure, axes = new_figure(0.85 + 0.34 * len(rows), width=9.0)
    for y, (lane, row) in enumerate(rows.items()):
        ends = [(row[0].started - zero) / unit, (max(bar.ended for bar in row) - zero) / unit]
        axes.plot(ends, [y, y], color=MUTED, lw=1, zorder=1)
        for bar in row:
            _draw(axes, y, bar, zero, unit, label=bar.ended - bar.started > 0.018 * span)
        if lane != FINAL_RUN:
            axes.text(1.01, y, f"{100 * busy(row):.0f} % busy", transform=axes.get_yaxis_transform(), va="center",
                      color=MUTED, fontsize=8.5)  # fmt: skip
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel=f"{name} since the first trial began", ylim=(len(rows) - 0.4, -0.6), xlim=(0, None))
    axes.grid(axis="y", visible=False)
    return figure


def _draw(axes: Axes, y: int, bar: Bar, zero: float, unit: float, *, label: bool) -> None:
    left, right = (bar.started - zero) / unit, (bar.ended - zero) / unit
    face = PANEL if bar.pruned else bar.colour
    edge = bar.colour if bar.pruned else PANEL
    axes.barh(y, right - left, left=left, height=0.68, color=face, edgecolor=edge, linewidth=1, zorder=2)
    if label:
        text = f"{bar.label} ×" if bar.colour == BAD else bar.label
        colour = bar.colour if bar.pruned else PANEL
        axes.text((left + right) / 2, y, text, ha="center", va="center_baseline", color=colour, fontsize=7.5)


def _node(result: RunResult) -> str:
    """The node's name, `node` of `lane-1/pid-7@node`; empty where it is not told."""
    return (result.worker or "").partition("@")[2]


def _lane(result: RunResult) -> str:
    """The lane's name, `lane-1` of `lane-1/pid-7@node`: a lane whose worker was replaced is still the same lane."""
    return (result.worker or "?").partition("/")[0]


def _colour(trial: Trial) -> str:
    if trial.objective is None and trial.status != "pruned":
        return BAD
    return {"weights": SOFT, "retest": SERIAL, "variant": SERIAL, "full": PARALLEL, "audit": PARALLEL}.get(
        trial.spec.stage, ACCENT
    )
