"""What a study has spent, and whether another training fits: a fold over its folder, without a state of its own.

Spent is what attempts at trainings held, the lost and the cut ones too (`trainer.training.attempts`), in GPU-hours
where lanes have GPUs, else in CPU-hours. What is expected comes from what the search's trials took for each pass over
the users. All decisions follow from results, so a study that is started again decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from darec_search import weights
from darec_search.config import StudyConfig
from darec_search.fidelities import full_fidelity, trial_fidelity
from darec_search.study import Study, Trial
from darec_search.trial import SEARCH_STAGES, Fidelity, Stage, TrialSpec
from trainer.training.attempts import ATTEMPTS, KILLED, Attempt, Held, end_open, in_lines, recorded
from trainer.training.result import RunResult

FINAL_ATTEMPTS = "final_attempts.jsonl"
"""Attempts at final runs of earlier winners, whose folder is gone."""
_RETESTS: tuple[Stage, ...] = ("retest", "variant")
_PARTS: dict[Stage, str] = {
    **dict.fromkeys(SEARCH_STAGES, "search"), **dict.fromkeys(_RETESTS, "re-tests"), "full": "all users",
    "audit": "audit",
}  # fmt: skip
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Ledger:
    """What a study has spent.

    Args:
        unit: `GPU-hours` or `CPU-hours`.
        parts: hours by part of the study: search, re-tests, all users, audit.
        limit: hours that it may spend; None for any number.
        price: of an hour, if known.
        currency: label of the price.
    """

    unit: str
    parts: Mapping[str, float]
    limit: float | None
    price: float | None
    currency: str

    @property
    def hours(self) -> float:
        """All parts together."""
        return math.fsum(self.parts.values())

    @property
    def cost(self) -> float | None:
        """In money, if the price is known."""
        return None if self.price is None else self.hours * self.price

    @property
    def text(self) -> str:
        """`3.2 of 5 GPU-hours (8.00 of 12.50 EUR)`."""
        limited = "" if self.limit is None else f" of {self.limit:g}"
        said = f"{_figure(self.hours)}{limited} {self.unit}"
        if self.cost is None or self.price is None:
            return said
        most = "" if self.limit is None else f" of {self.limit * self.price:.2f}"
        return f"{said} ({self.cost:.2f}{most}{f' {self.currency}' if self.currency else ''})"

    def document(self) -> dict[str, object]:
        """For `status --json`."""
        parts = {"unit": self.unit, "hours": self.hours, "by_part": dict(self.parts), "limit": self.limit}
        return {**parts, "cost": self.cost, "currency": self.currency}


def ledger(study: Study) -> Ledger:
    """What a study has spent, by its folder."""
    parts = dict.fromkeys(_PARTS.values(), 0.0)
    for trial in study.trials():
        parts[_PARTS[trial.spec.stage]] += trial_hours(study.config, trial)
    parts["all users"] += final_hours(study)
    budget = study.config.budget
    return Ledger(unit(study.config), parts, budget.hours, budget.price_per_hour, budget.currency)


def unit(config: StudyConfig) -> str:
    """What hours are of."""
    return "GPU-hours" if config.resources.gpus_per_lane > 0 else "CPU-hours"


def units(config: StudyConfig, held: Held) -> float:
    """Hours that an hour of holding this counts."""
    return held.gpus if config.resources.gpus_per_lane > 0 else held.cpus


def trial_hours(config: StudyConfig, trial: Trial) -> float:
    """Hours of all attempts at a trial; of the one under way up to its last sign of life."""
    return _hours(config, recorded(trial.folder), trial.result, config.resources.held)


def final_hours(study: Study, before: float = math.inf) -> float:
    """Hours of all attempts at final runs that began before a time, those of earlier winners included."""
    attempts = {one.id: one for one in (*_earlier(study.folder), *recorded(study.folder / "final"))}
    result = study.final_result()
    if not attempts and result is not None and result.cost.started_at >= before:
        return 0.0
    begun = [one for one in attempts.values() if one.started_at < before]
    return _hours(study.config, begun, None if attempts and not begun else result, final_held(study.config))


def final_held(config: StudyConfig) -> Held:
    """What the final run holds."""
    promotion = config.promotion
    if config.resources.runner == "local":
        return config.resources.held
    return Held(promotion.num_workers * promotion.cpus_per_worker, promotion.num_workers * promotion.gpus_per_worker)


def keep_final_attempts(study_folder: Path) -> None:
    """Keep what final runs have cost before `final/` makes room for another winner's."""
    end_open(study_folder / "final", KILLED)
    file = study_folder / "final" / ATTEMPTS
    if file.exists():
        with (study_folder / FINAL_ATTEMPTS).open("a", encoding="utf-8") as kept:
            kept.write(f"{file.read_text(encoding='utf-8').rstrip()}\n")


def promotion_share(config: StudyConfig) -> float:
    """The part of `budget.hours` that the search leaves to what follows it."""
    if config.budget.promotion_share is not None:
        return config.budget.promotion_share
    trial, full = trial_fidelity(config).cost, full_fidelity(config).cost
    for_weights = weights.trials_of(config) if config.search.strategy == "staged" else 0
    searching = (config.search.trials + for_weights * (1 + config.search.weights_again)) * trial
    following = config.promotion.most_retests * trial + (3 + config.adds_prior) * full
    return following / (searching + following)


class Allowance:
    """Whether another training fits into `budget.hours`.

    Args:
        study: the study.
        outside: trials of which each counts for what it has cost.
        since: final runs that began later do not count (Unix seconds).
    """

    def __init__(self, study: Study, outside: Iterable[Trial], since: float = math.inf) -> None:
        self._config, self._study = study.config, study
        self._limit = study.config.budget.hours
        self._known: dict[str, float] = {}
        self._outside = [] if self._limit is None else list(outside)
        self._before = sum(map(self._of, self._outside))
        if self._limit is not None:
            self._before += final_hours(study, since)

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._limit is not None

    def search_goes_on(self, ended: Sequence[Trial], under_way: Iterable[TrialSpec]) -> bool:
        """Whether the search may ask for one more trial.

        Args:
            ended: trials of this part of the search whose results are known.
            under_way: trials of this part that were asked for besides; each counts as it is expected to end.
        """
        if self._limit is None:
            return True
        rate = self._rate([*self._outside, *ended], SEARCH_STAGES)
        committed = self._before + sum(map(self._of, ended))
        committed += sum(self._lost(spec) + rate * spec.fidelity.cost for spec in under_way)
        one_more = rate * trial_fidelity(self._config).cost
        return committed + one_more <= self._limit - self._kept(rate) + _ROUNDING

    def retests(self, fidelity: Fidelity) -> int | None:
        """Re-tests that fit beside the trainings on all users; None for any number."""
        if self._limit is None:
            return None
        rate = self._rate(self._outside, (*SEARCH_STAGES, *_RETESTS))
        one = rate * fidelity.cost
        left = self._limit - self._before - _on_all_users(self._config, rate)
        return max(0, math.floor(left / one + _ROUNDING)) if one > 0 else None

    def _rate(self, trials: Iterable[Trial], stages: Sequence[Stage]) -> float:
        """Hours for a pass over all users on a lane, by trials of these stages that have a curve; 0 while none has."""
        passes, hours = 0.0, 0.0
        for trial in trials:
            if trial.result and trial.spec.stage in stages and trial.status in ("finished", "pruned"):
                passes += _passes(trial.spec, trial.result)
                hours += self._of(trial)
        return hours / passes if passes else 0.0

    def _kept(self, rate: float) -> float:
        """Hours that are not the search's."""
        retests = self._config.promotion.most_arms * trial_fidelity(self._config).cost * rate
        least = retests + _on_all_users(self._config, rate)
        return max(promotion_share(self._config) * (self._limit or 0.0), least)

    def _of(self, trial: Trial) -> float:
        """Hours of a trial; what has ended does not change any more."""
        if trial.spec.id not in self._known:
            hours = trial_hours(self._config, trial)
            if trial.result is None:
                return hours
            self._known[trial.spec.id] = hours
        return self._known[trial.spec.id]

    def _lost(self, spec: TrialSpec) -> float:
        """Hours of attempts at a trial under way that are over."""
        attempts = [one for one in recorded(self._study.trial_folder(spec.id)) if one.over]
        return _hours(self._config, attempts, None, Held())


def _on_all_users(config: StudyConfig, rate: float) -> float:
    """Hours that the final model and what it is compared with are expected to take; workers of a run share its work."""
    final = final_held(config)
    workers = 1 if config.resources.runner == "local" else config.promotion.num_workers
    a_worker = units(config, final) / workers / units(config, config.resources.each)
    return rate * full_fidelity(config).cost * (2 + config.adds_prior + a_worker)


def _passes(spec: TrialSpec, result: RunResult) -> float:
    """Passes over all users that a trial made; a stopped one less than it was to make."""
    whole = spec.fidelity.cost
    return whole * result.curve[-1]["epoch"] / spec.fidelity.epochs if result.status == "pruned" else whole


def _hours(config: StudyConfig, attempts: Sequence[Attempt], result: RunResult | None, planned: Held) -> float:
    """Hours of attempts; of a run without a record what its result says, at what it was to hold."""
    if not attempts:
        return result.cost.wall_s * units(config, planned) / 3600 if result else 0.0
    newest = attempts[-1]
    ended_at = newest.ended_at if newest.over or result is None else max(newest.ended_at, result.cost.ended_at)
    seconds = [*((one, one.seconds) for one in attempts[:-1]), (newest, max(0.0, ended_at - newest.started_at))]
    return math.fsum(spent * units(config, one.held) for one, spent in seconds) / 3600


def _earlier(folder: Path) -> list[Attempt]:
    try:
        lines = (folder / FINAL_ATTEMPTS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return in_lines(lines, {})


def _figure(hours: float) -> str:
    return f"{hours:.3g}" if hours < 100 else f"{hours:,.0f}"
