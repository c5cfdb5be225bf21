"""What a report says, in numbers and words, as a fold over the study folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from darec_search.budget import Ledger, ledger
from darec_search.fidelities import trial_fidelity
from darec_search.insight import Insight, read_insight
from darec_search.study import Study, Trial, best_trial
from darec_search.variants import FIXED
from trainer.architecture import FIXED_ARMS, Architecture
from trainer.training.result import RunResult

SEARCH_STAGES = ("weights", "architecture", "joint")
REFERENCES = ("popularity", "neighbours")
NAMES = {"serial": "all serial", "parallel": "all parallel", "darec_base": "DARec_base"}
_OBJECTIVES = {"mrr": "validation MRR", "log_likelihood": "validation log-likelihood"}


@dataclass(frozen=True)
class Candidate:
    """A design that was trained again with fresh seeds before promotion; values are validation MRRs."""

    arm: str
    architecture: Architecture
    weights: Mapping[str, float]
    values: Sequence[float]
    mean: float
    stderr: float | None
    search_value: float | None
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    """90 % interval of the estimate."""

    @property
    def value(self) -> float:
        """The estimate by which the choice was made, else the mean."""
        return self.mean if self.estimate is None else self.estimate

    @property
    def bounds(self) -> tuple[float, float]:
        """Ends of the interval, or of the standard error around the mean."""
        return self.interval or (self.mean - (self.stderr or 0.0), self.mean + (self.stderr or 0.0))

    @property
    def name(self) -> str:
        return NAMES.get(self.arm, self.arm)

    @property
    def figure(self) -> str:
        """Mean ± standard error."""
        return f"{self.mean:.4f} ± {self.stderr:.4f}" if self.stderr is not None else f"{self.mean:.4f}"


@dataclass(frozen=True)
class Decision:
    """How sure the promotion is; every part may be missing.

    Args:
        value: the winner's mean and the ends of its 90 % interval.
        confidence: probability that the winner is the best of all arms.
        as_good: by arm the probability that it is at least as good as the winner.
        overstated: by how much the search's score of `winner` and of its `luckiest` design was too high.
        spent: trainings.
    """

    value: tuple[float, float, float] | None
    confidence: float | None
    as_good: Mapping[str, float]
    overstated: Mapping[str, float]
    spent: int | None


@dataclass(frozen=True)
class Priced:
    """A training of the search data: its number, what it cost, its validation MRR."""

    number: int
    cost: float
    mrr: float


@dataclass(frozen=True)
class Facts:
    """A study at this moment. Everything but the trials may still be missing."""

    study: Study
    trials: Sequence[Trial]
    candidates: Sequence[Candidate]
    untested: Sequence[str]
    winner: Candidate | None
    rule: str
    final: RunResult | None
    test: Mapping[str, Any]
    comparison: Sequence[Mapping[str, Any]]
    decision: Decision
    insight: Insight | None
    audit: Mapping[str, Any]
    ledger: Ledger
    cut: Sequence[str]
    """What the budget had no room for."""

    @property
    def objective(self) -> str:
        """What the search maximised, in words."""
        return _OBJECTIVES[self.study.config.search.objective]

    @property
    def searched_in_order(self) -> list[Trial]:
        """Trials of the search with a result, in the order of their end."""
        return [trial for trial, _ in self.ended if trial.spec.stage in SEARCH_STAGES]

    @property
    def places_of_values(self) -> list[int]:
        """Which of `searched_in_order`, from 1, have an MRR, reached or foretold."""
        return [i for i, trial in enumerate(self.searched_in_order, 1) if trial.estimate("mrr")[0] is not None]

    @property
    def on_gpus(self) -> bool:
        """Whether trainings held GPUs."""
        return any(result.cost.gpu_s for _, result in self.ended)

    @property
    def cost_unit(self) -> str:
        """What a training costs."""
        return "GPU-hours" if self.on_gpus else "seconds"

    @property
    def priced(self) -> list[Priced]:
        """Finished trainings at the search's fidelity."""
        fidelity = trial_fidelity(self.study.config)
        costs = [
            (trial, result.cost.gpu_s / 3600 if self.on_gpus else result.cost.wall_s) for trial, result in self.ended
        ]
        return [
            Priced(trial.spec.number, cost, trial.objective)
            for trial, cost in costs
            if trial.objective is not None and trial.spec.fidelity == fidelity and cost > 0
        ]

    @property
    def searched(self) -> list[Trial]:
        """Trials of the search itself, without those of the promotion."""
        return [trial for trial in self.trials if trial.spec.stage in SEARCH_STAGES]

    @property
    def ended(self) -> list[tuple[Trial, RunResult]]:
        """Trials with a result, in the order of their end."""
        pairs = [(trial, trial.result) for trial in self.trials if trial.result is not None]
        return sorted(pairs, key=lambda pair: (pair[1].cost.ended_at, pair[0].spec.number))

    @property
    def leader(self) -> Architecture | None:
        """The promoted architecture; before promotion the best that the search has seen."""
        if self.winner:
            return self.winner.architecture
        best = best_trial(self.searched)
        return Architecture(best.spec.bits) if best else None


@dataclass(frozen=True)
class Sentence:
    """One sentence of the verdict. `tone` is plain, good, or bad news."""

    text: str
    tone: str = "plain"


def gather(study: Study) -> Facts:
    """Read the study folder."""
    promotion = _mapping(study.folder / "promotion.json")
    entries = promotion.get("candidates", [])
    candidates = [_candidate(entry) for entry in entries if entry.get("mean") is not None]
    comparison = _json(study.folder / "final" / "comparison.json")
    return Facts(
        study=study,
        trials=study.trials(),
        candidates=candidates,
        untested=[str(entry["arm"]) for entry in entries if entry.get("mean") is None],
        winner=next((c for c in candidates if c.arm == promotion.get("winner")), None),
        rule=str(promotion.get("rule", "")),
        final=_final_result(study.folder / "final" / "result.json"),
        test=_mapping(study.folder / "final" / "metrics.json"),
        comparison=comparison if isinstance(comparison, list) else [],
        decision=_decision(promotion),
        insight=read_insight(study.folder),
        audit=_mapping(study.folder / "audit.json"),
        ledger=ledger(study),
        cut=[str(text) for text in promotion.get("cut", [])],
    )


def headline(facts: Facts) -> Sentence:
    """What won, in one line."""
    if facts.winner is None:
        return _unpromoted_headline(facts)
    if facts.winner.arm in FIXED:
        return Sentence(f"A fixed architecture won: {facts.winner.name}", "bad")
    if not facts.winner.arm.startswith("best-"):
        return Sentence(f"The search found nothing better than {facts.winner.name}", "bad")
    return Sentence("The search found the winner", "good")


def verdict(facts: Facts) -> list[Sentence]:
    """By how much it won, and whether that means anything."""
    if facts.winner is None:
        return _progress(facts)
    return [*_retests(facts, facts.winner), *_test(facts), *(Sentence(sentence(text)) for text in facts.cut)]


def lead(first: Candidate, second: Candidate) -> Sentence:
    """How far the first lies above the second, and whether the noise allows to say so."""
    text = f"That is {relative(first.mean, second.mean)} on {second.name} ({second.figure})"
    if first.stderr is None or second.stderr is None:
        return Sentence(f"{text}; with one seed each nobody can say whether that is chance.")
    difference, noise = first.mean - second.mean, math.hypot(first.stderr, second.stderr)
    if abs(difference) <= 2 * noise:
        return Sentence(f"{text}; that is within two standard errors, so it may be chance.")
    return Sentence(f"{text}.", "good" if difference > 0 else "bad")


def relative(value: float, base: float) -> str:
    """The difference in per cent of the base."""
    return f"{100 * (value - base) / base:+.1f} %" if base else "no ratio to zero"


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith(".") else f"{text}."


def _unpromoted_headline(facts: Facts) -> Sentence:
    best = best_trial(facts.searched)
    if best:
        return Sentence(f"No winner yet: best validation MRR so far {best.objective:.4f}")
    if facts.ended:
        return Sentence(f"No trial has finished: all {len(facts.ended)} that ended failed", "bad")
    return Sentence("No trial has ended yet")


def _progress(facts: Facts) -> list[Sentence]:
    counts = Counter(trial.status for trial in facts.trials)
    said = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in counts.most_common())
    sentences = [Sentence(f"{_plural(len(facts.trials), 'trial')} so far{': ' + said if said else ''}.")]
    best = best_trial(facts.searched)
    if best:
        sentences.append(
            Sentence(
                f"Trial {best.spec.number} leads. It is a single training, so part of its lead is luck: "
                "the best few are trained again with fresh seeds before one is promoted."
            )
        )
    reasons = Counter(result.reason for _, result in facts.ended if result.reason)
    if reasons and not best:
        reason, number = reasons.most_common(1)[0]
        sentences.append(Sentence(f"Most frequent reason ({number} of {len(facts.ended)}): {reason}", "bad"))
    return sentences


def _retests(facts: Facts, winner: Candidate) -> list[Sentence]:
    text = f"{winner.name} reaches a validation MRR of {winner.figure} over {_plural(len(winner.values), 'fresh seed')}"
    if winner.search_value is not None:
        text += f"; during the search, with the luck of being picked, it was {winner.search_value:.4f}"
    sentences = [Sentence(sentence(text))]
    if facts.untested:
        sentences.append(Sentence(f"No re-test of {', '.join(facts.untested)} finished.", "bad"))
    others = [c for c in facts.candidates if c.arm != winner.arm]
    fixed = [c for c in others if c.arm in FIXED]
    if winner.arm in FIXED:
        # What the search itself brought is the news here.
        fixed += sorted((c for c in others if c.arm not in FIXED), key=lambda c: -c.mean)[:1]
    return sentences + [lead(winner, other) for other in fixed]


def _test(facts: Facts) -> list[Sentence]:
    rows = {str(row["name"]): row for row in facts.comparison}
    if not facts.test or "winner" not in rows:
        return [Sentence("The final run has not been measured on the test split yet.")]
    figures = ", ".join(
        f"{label} {facts.test[name]:.4f}"
        for name, label in (("mrr", "MRR"), ("recall@10", "Recall@10"), ("ndcg@10", "NDCG@10"))
        if name in facts.test
    )
    mrr = float(rows["winner"]["mrr"])
    users = f"{facts.test['users']:,} users" if "users" in facts.test else "all users"
    sentences = [Sentence(f"On the test split, read once ({users}): {figures}.")]
    design = rows.pop(facts.winner.arm, None) if facts.winner else None
    if design is not None:
        without, p_value = float(design["mrr"]), design["p_value"]
        text = f"Without the prior from counts its design has a test MRR of {without:.4f}"
        sentences.append(Sentence(f"{text}: the prior's gain is {relative(mrr, without)} (p = {p_value:.2g})."))
    compared: list[tuple[Iterable[str], str, str, float]] = []
    if design is not None:
        compared.append((FIXED_ARMS, "", "Its design without the prior", float(design["mrr"])))
    elif not rows["winner"].get("prior"):
        compared.append((FIXED_ARMS, "", "The winner", mrr))
    compared.append((REFERENCES, ", which need no training", "The winner", mrr))
    for names, what, who, own in compared:
        known = [rows[name] for name in names if name in rows]
        sentences += [_beaten(row, who, own) for row in known if float(row["mrr"]) >= own]
        losers = " and ".join(_margin(row, own) for row in known if float(row["mrr"]) < own)
        sentences += [Sentence(f"{who} beats {losers}{what}.", "good")] if losers else []
    return sentences


def _margin(row: Mapping[str, Any], mrr: float) -> str:
    """`name (+12.3 %, p = 0.03)`; the p-value is that of a paired t-test over the users."""
    name, p_value = str(row["name"]), row.get("p_value_design", row.get("p_value"))
    text = relative(mrr, float(row["mrr"]))
    if p_value is not None:
        text += f", p = {p_value:.2g}" + (": may be chance" if p_value > 0.05 else "")
    return f"{NAMES.get(name, name)} ({text})"


def _beaten(row: Mapping[str, Any], who: str, mrr: float) -> Sentence:
    name = str(row["name"])
    against = f"test MRR {float(row['mrr']):.4f} against {mrr:.4f}"
    if name in REFERENCES:
        text = f"{name.capitalize()}, which needs no training, is better than the model: {against}."
        return Sentence(f"{text} The model is of no use here before it beats that.", "bad")
    return Sentence(
        f"On the test split {NAMES[name]} is at least as good as {who[0].lower()}{who[1:]}: {against}.", "bad"
    )


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    stderr = entry.get("stderr")
    return Candidate(
        arm=str(entry["arm"]),
        architecture=Architecture(tuple(entry["bits"])),
        weights=entry.get("weights", {}),
        values=[float(value) for value in entry.get("values", [])],
        mean=float(entry["mean"]),
        stderr=float(stderr) if stderr is not None and math.isfinite(stderr) else None,
        search_value=entry.get("search_value"),
        estimate=entry.get("estimate"),
        interval=tuple(entry["interval"]) if entry.get("interval") else None,
    )


def _decision(promotion: Mapping[str, Any]) -> Decision:
    value, overstated = promotion.get("value"), promotion.get("overstatement") or {}
    return Decision(
        value=(value["mean"], value["low"], value["high"]) if value else None,
        confidence=promotion.get("confidence"),
        as_good=promotion.get("as_good") or {},
        overstated={name: overstated[name] for name in ("winner", "luckiest") if overstated.get(name) is not None},
        spent=promotion.get("spent"),
    )


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _mapping(file: Path) -> dict[str, Any]:
    document = _json(file)
    return document if isinstance(document, dict) else {}


def _final_result(file: Path) -> RunResult | None:
    try:
        return RunResult.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
