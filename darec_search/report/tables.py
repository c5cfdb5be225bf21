"""The report's pictures as tables and in words, for whoever cannot see them or wants the figures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from html import escape

from darec_search.insight import Insight
from darec_search.report.facts import NAMES, Facts
from darec_search.report.mattered import in_words, thousandths
from darec_search.report.progress import pareto
from darec_search.report.timeline import FINAL_RUN, busy, lanes

_NAMED = 6
"""Interactions that are told in words; the table has all."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]], title: str = "The figures as a table") -> str:
    """A folded table of text; a row's first cell is its heading."""
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(_row(str(first), [str(cell) for cell in cells]) for first, *cells in rows)
    return (
        f'<details><summary>{escape(title)}</summary><div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr>'
        f"</thead><tbody>{body}</tbody></table></div></details>"
    )


def _row(heading: str, cells: Iterable[str]) -> str:
    found = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(heading)}</th>{found}</tr>'


def effects_table(insight: Insight) -> str:
    """Every adapter's effect with its interval."""
    rows = ((effect.name, in_words(effect), "yes" if effect.clear else "") for effect in insight.adapters)
    return table(("adapter", "effect of parallel ×10⁻³", "clear"), rows)


def interactions(insight: Insight) -> str:
    """The clear interactions in words."""
    if not insight.pairs:
        return ""
    found = insight.interactions
    if not found:
        return f"<p>No interaction is clear: the intervals of all {insight.pairs} pairs of adapters hold 0.</p>"
    told = "".join(
        f"<li>{escape(pair.first)} being parallel is worth <b>{thousandths(pair.mean)}</b> more where "
        f"{escape(pair.second)} is parallel too ({thousandths(pair.low)} to {thousandths(pair.high)}).</li>"
        for pair in found[:_NAMED]
    )
    count = "One interaction is" if len(found) == 1 else f"{len(found)} interactions are"
    rest = f" The {_NAMED} largest:" if len(found) > _NAMED else ""
    more = table(("adapter", "with", "more, ×10⁻³"), ((p.first, p.second, in_words(p)) for p in found),
                 "All clear interactions") if len(found) > _NAMED else ""  # fmt: skip
    return f"<p>{count} clear among {insight.pairs} pairs of adapters, ×10⁻³.{rest}</p><ul>{told}</ul>{more}"


def weights_table(insight: Insight) -> str:
    """Every level of every loss weight with its interval."""
    rows = (
        (f"λ {curve.name} {level.level:g}", curve.architecture or "all", in_words(level), level.trials)
        for curve in insight.weights
        for level in curve.levels
    )
    return table(("level", "architecture", "against the average ×10⁻³", "trials"), rows)


def search_table(insight: Insight) -> str:
    """What was believed after so many results, and what random search would have got."""
    rows = (
        (belief.trials, f"{belief.mean:.4f}", f"{belief.low:.4f} to {belief.high:.4f}",
         f"{insight.random.median[belief.trials - 1]:.4f}",
         f"{insight.random.low[belief.trials - 1]:.4f} to {insight.random.high[belief.trials - 1]:.4f}")
        for belief in insight.beliefs
    )  # fmt: skip
    head = ("results", "believed", "90 % interval", "random search's best", "90 % band")
    return table(head, rows)


def cost_table(facts: Facts) -> str:
    """The trainings that none beats in cost and quality."""
    rows = ((f"trial {p.number}", f"{p.cost:.3g}", f"{p.mrr:.4f}") for p in pareto(facts.priced))
    return table(("not beaten", facts.cost_unit, "validation MRR"), rows)


def retests_table(facts: Facts) -> str:
    """Every candidate with its seeds."""
    rows = (
        (c.name, c.architecture.text, f"{c.value:.4f}", f"{c.bounds[0]:.4f} to {c.bounds[1]:.4f}",
         f"{c.search_value:.4f}" if c.search_value is not None else "–", " ".join(f"{v:.4f}" for v in c.values))
        for c in sorted(facts.candidates, key=lambda c: -c.value)
    )  # fmt: skip
    return table(("candidate", "architecture", "value", "bar", "in the search", "seeds"), rows)


def timeline_table(facts: Facts) -> str:
    """Every lane: its runs, how busy it was, and its longest wait."""
    rows = []
    for name, bars in lanes(facts).items():
        if name == FINAL_RUN:
            continue
        gaps = [after.started - before.ended for before, after in itertools.pairwise(bars)]
        rows.append((name, len(bars), f"{100 * busy(bars):.0f} %", f"{max(gaps, default=0.0):.1f} s"))
    return table(("lane", "runs", "busy", "longest wait"), rows)


def decision(facts: Facts) -> str:
    """How sure the promotion is, with a meter for each arm that might be as good; empty where it does not say."""
    found = facts.decision
    lines = []
    if found.value:
        mean, low, high = found.value
        lines.append(f"The winner is worth {mean:.4f} (90 % interval {low:.4f} to {high:.4f}).")
    if found.confidence is not None:
        lines.append(f"Chance that it is the best of all that were tested again: {_percent(found.confidence)}.")
    told = {"winner": "the winner", "luckiest": "the design with the best score"}
    for name, by in found.overstated.items():
        way = "too high" if by >= 0 else "too low"
        lines.append(f"The search's score of {told[name]} was {abs(by):.4f} {way} (winner's curse).")
    if found.spent is not None:
        lines.append(f"{found.spent} trainings were spent on it.")
    text = "".join(f"<li>{escape(line)}</li>" for line in lines)
    meters = "".join(
        f"<tr><th scope=row>{escape(NAMES.get(arm, arm))}</th><td class=n>{_percent(chance)}</td>"
        f'<td class="bar other" style="--w:{100 * chance:.0f}%"></td></tr>'
        for arm, chance in sorted(found.as_good.items(), key=lambda item: -item[1])
    )
    chances = (
        f"<table><caption>Chance of being at least as good as the winner</caption><tbody>{meters}</tbody></table>"
        if meters
        else ""
    )
    return (f"<ul>{text}</ul>" if text else "") + chances


def audit(facts: Facts) -> str:
    """How well the search's part of the data orders designs as all data do; empty without an audit."""
    found = facts.audit
    pairs, advice = found.get("pairs"), found.get("advice")
    if not isinstance(pairs, list) or not isinstance(advice, str):
        return ""
    text = f"{len(pairs)} designs were trained on the search's part of the data and on all of it. {advice}"
    return f"<p>{escape(text)}</p>"


def _percent(chance: float) -> str:
    """Whole per cent; what is not impossible is not called 0."""
    if 0 < chance < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < chance < 1 else f"{100 * chance:.0f} %"
