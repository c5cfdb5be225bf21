"""Pictures of what mattered: effects of adapters, and of loss weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from darec_search.insight import Interval, LevelCurve
from darec_search.report.drawing import (
    ACCENT,
    INK,
    MUTED,
    PARALLEL,
    SERIAL,
    WIDTH,
    cell_box,
    layer_grid,
)
from darec_search.report.facts import NAMES, Facts
from darec_search.study import Trial
from trainer.architecture import FIXED_ARMS, Architecture

_STRONGEST = 0.65
"""Opacity of the largest effect: text stays readable on it, in light and dark."""
_LOOKS = ((ACCENT, "o", "-"), (PARALLEL, "s", "--"), (SERIAL, "^", ":"), (MUTED, "D", "-."))


def thousandths(value: float) -> str:
    """A difference in thousandths with its sign."""
    text = f"{1000 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def effects_picture(facts: Facts) -> Figure | None:
    """Layer × slot: by how much the objective rises when this adapter is parallel; clear effects are outlined."""
    if facts.insight is None:
        return None
    effects = facts.insight.adapters
    figure, axes = layer_grid(facts.study.space.layers)
    top = max(abs(effect.mean) for effect in effects) or 1.0
    columns = {slot: column for column, slot in enumerate(dict.fromkeys(effect.slot for effect in effects))}
    for effect in effects:
        column = columns[effect.slot]
        shade = to_rgba(PARALLEL if effect.mean > 0 else SERIAL, _STRONGEST * abs(effect.mean) / top)
        edge = {"edgecolor": INK, "linewidth": 1.5} if effect.clear else {"edgecolor": "none"}
        axes.add_patch(cell_box(column, effect.layer, facecolor=shade, **edge))
        weight, colour = ("bold", INK) if effect.clear else ("normal", MUTED)
        axes.text(column, effect.layer, thousandths(effect.mean), ha="center", va="center_baseline", color=colour,
                  fontsize=9, fontweight=weight)  # fmt: skip
    return figure


@dataclass(frozen=True)
class _Curve:
    """Levels of a loss weight at one architecture, or at all together."""

    label: str
    trials: Sequence[Trial]
    fitted: LevelCurve | None


def weights_picture(facts: Facts) -> Figure | None:
    """One panel per searched loss weight, one curve per architecture at which its levels were compared."""
    searched = facts.study.config.search.weights.searched()
    curves = {name: _curves(facts, name) for name, levels in searched.items() if len(levels) > 1}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        return None
    figure = Figure(figsize=(WIDTH, 2.75))
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, curves.items(), strict=True):
        levels = searched[name]
        for place, curve in enumerate(found):
            _draw(axes, name, levels, curve, place, len(found))
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.set(xlabel=f"λ {name}", xlim=(-0.5, len(levels) - 0.5))
        axes.grid(axis="x", visible=False)
    # So many ticks at any height: the layout must not change the width of their labels, which it rests on.
    panels[0].yaxis.set_major_locator(MaxNLocator(6))
    panels[0].set_ylabel(f"Δ {facts.objective} ×10⁻³")
    labels = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    if len(labels) > 1:
        figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _curves(facts: Facts, name: str) -> list[_Curve]:
    """Of a staged search one per architecture with several levels: each has its own height."""
    trials = [trial for trial in facts.searched if trial.objective is not None]
    fitted = {c.architecture: c for c in (facts.insight.weights if facts.insight else ()) if c.name == name}
    if facts.study.config.search.strategy == "joint":
        groups: dict[str | None, list[Trial]] = {None: trials}
    else:
        texts = dict.fromkeys(Architecture(t.spec.bits).text for t in trials if t.spec.stage == "weights")
        groups = {text: [t for t in trials if Architecture(t.spec.bits).text == text] for text in texts}
    return [
        _Curve(_label(text), own, fitted.get(text))
        for text, own in groups.items()
        if len({trial.spec.weights.get(name) for trial in own}) > 1
    ]


def _label(architecture: str | None) -> str:
    if architecture is None:
        return "all architectures"
    kind = Architecture.parse(architecture, architecture.count("-") + 1).text
    uniform = {Architecture.uniform(kind.count("-") + 1, arm).text: NAMES[arm] for arm in FIXED_ARMS}
    return uniform.get(kind, kind if len(kind) <= 19 else "the best architecture")


def _draw(axes: Axes, name: str, levels: Sequence[float], curve: _Curve, place: int, count: int) -> None:
    colour, marker, line = _LOOKS[place % len(_LOOKS)]
    shift = 0.12 * (place - (count - 1) / 2)
    values = [trial.objective or 0.0 for trial in curve.trials]
    average = sum(values) / len(values)
    places = [levels.index(trial.spec.weights[name]) + shift for trial in curve.trials]
    heights = [1000 * (value - average) for value in values]
    axes.scatter(places, heights, s=16, color=colour, marker=marker, alpha=0.45, lw=0, zorder=2)
    if curve.fitted:
        x, rows = list(range(len(levels))), curve.fitted.levels
        axes.fill_between(x, _scaled(row.low for row in rows), _scaled(row.high for row in rows), color=colour,
                          alpha=0.16, lw=0)  # fmt: skip
        means = _scaled(row.mean for row in rows)
    else:
        x = [i for i, level in enumerate(levels) if any(t.spec.weights[name] == level for t in curve.trials)]
        means = [_mean(h for p, h in zip(places, heights, strict=True) if round(p - shift) == i) for i in x]
    axes.plot(x, means, marker=marker, ls=line, color=colour, ms=5, lw=1.8, zorder=3, label=curve.label)


def _scaled(values: Iterable[float]) -> list[float]:
    return [1000 * value for value in values]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def in_words(effect: Interval) -> str:
    """`+1.2 (+0.3 to +2.1)` in thousandths."""
    return f"{thousandths(effect.mean)} ({thousandths(effect.low)} to {thousandths(effect.high)})"
