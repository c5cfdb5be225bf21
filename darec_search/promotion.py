"""From the search's best points to one winner, which the re-tests have not flattered.

All arms (`arms.py`) are trained again on the search data with fresh seeds, the same for all; the worse half is dropped,
and so on (`winner.race`). The best of many noisy trials is often luck, so the search's scores do not count in the
choice; nor does the best re-test count for what it seems to be: what is stated comes from a posterior that knows how
many arms there were and how far seeds and users blur them (docs/winner.md).
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from darec_search.arms import Competition, Competitor, PromotionFailed, competition
from darec_search.budget import Allowance, unit
from darec_search.controller import search_fidelity
from darec_search.retested import Retested
from darec_search.runners.base import DoneEvent, Event, Runner
from darec_search.space import Point
from darec_search.study import Study, Trial
from darec_search.trial import SEARCH_STAGES, TrialSpec
from darec_search.winner import LEVEL, TIE, Belief, Race, after_ties, race
from trainer.architecture import Architecture
from trainer.config import Section

RULE = (
    "highest expected validation MRR by all re-tests with fresh seeds on the search data; a fixed arm that is at least "
    f"as good with a probability of {TIE:.2f} ties, and wins"
)

logger = logging.getLogger(__name__)
OnEvent = Callable[[Event], None]
Key = tuple[int, int]
"""Arm and seed number of a re-test."""


class Value(Section):
    """What an arm is worth."""

    mean: float = Field(description="Expected validation MRR over seeds and users.")
    low: float = Field(description="Lower end of its 90 % interval.")
    high: float = Field(description="Upper end.")


class Overstatement(Section):
    """By how much scores of the search lay above what the re-tests say."""

    winner: float | None = Field(description="Of the winner; None if the search did not try it.")
    luckiest: float | None = Field(description="Of the best score of the search; None if that design has no re-test.")


class Candidate(Section):
    """One arm of the re-test."""

    arm: str = Field(description="best-1, best-2, …, serial, parallel, darec_base, given-1, …")
    bits: tuple[int, ...]
    weights: dict[str, float]
    trials: list[str] = Field(description="Ids of its re-tests.")
    values: list[float] = Field(description="Validation MRR of those that finished, by seed.")
    mean: float | None = Field(description="Mean of `values`.")
    stderr: float | None = Field(description="Standard error of the mean; None for a single value.")
    search_value: float | None = Field(description="Mean validation MRR during the search, where it was tried.")
    estimate: float | None = Field(None, description="Expected validation MRR; the choice is by this.")
    interval: tuple[float, float] | None = Field(None, description="90 % interval of it, over seeds and users.")


class Promotion(Section):
    """`promotion.json`: who was tested again, who won and why."""

    rule: str
    candidates: list[Candidate]
    winner: str
    reason: str
    value: Value | None = Field(None, description="What the winner is worth on the search data.")
    confidence: float | None = Field(None, description="Probability that the winner is the best of all arms.")
    clear: bool | None = Field(None, description="Whether some arm reached `promotion.confidence`.")
    as_good: dict[str, float] = Field(
        default_factory=dict, description="Probability that a fixed arm is at least as good as the winner, by name."
    )
    overstatement: Overstatement | None = Field(None, description="How much the search's scores promised too much.")
    spent: int | None = Field(None, description="Re-test trainings.")
    users: int | None = Field(
        None, description="Users whose being a sample the intervals count in; None if only seeds are."
    )
    cut: tuple[str, ...] = Field((), description="What `budget.hours` had no room for, in words.")

    @property
    def best(self) -> Candidate:
        """The winner."""
        return next(candidate for candidate in self.candidates if candidate.arm == self.winner)


@dataclass(frozen=True)
class Standing:
    """How far a promotion has come."""

    race: Race
    runs: int
    """Re-tests in all: at most, or in fact when it is over."""
    done: list[TrialSpec]
    """Those that have ended."""


def standing(study: Study, extra: Mapping[str, Point] | None = None) -> Standing:
    """How far the re-tests of a study have come; decides the arms if nobody has yet.

    Raises:
        PromotionFailed, BadInput: as `competition`.
    """
    field = competition(study, extra)
    tested = Retested(study, field)
    state = _race(study, field, tested)
    asked = [key for key in state.asked if key not in state.wanted]
    return Standing(state, field.budget(study) if state.wanted else state.spent, [tested.spec(*key) for key in asked])


def retest(
    study: Study,
    runner: Runner,
    on_event: OnEvent,
    extra: Mapping[str, Point] | None = None,
    left_out: int = 0,
) -> Promotion:
    """Test the arms again and choose; writes `promotion.json`. Resumable: finished re-tests are not repeated.

    Where `budget.hours` has no room for all of them beside the trainings on all users, the choice is made by fewer, one
    of each arm at least.

    Args:
        study: its search is over.
        runner: runs the re-tests.
        on_event: called with every row and result as it comes.
        extra: further arms by name, such as a reigning champion; of no effect on a promotion that has begun.
        left_out: trials that the budget had no room for in the search, to be told.

    Raises:
        PromotionFailed: if no trial of the search, or no re-test, finished.
        BadInput: if an arm does not fit the model.
    """
    field = competition(study, extra)
    tested = Retested(study, field)
    while (state := _race(study, field, tested)).wanted:
        first = next_number(study)
        specs = [tested.spec(*key, number) for number, key in enumerate(state.wanted, first)]
        run_missing(study, runner, [study.request(spec).spec for spec in specs], on_event)
    promotion = _decide(field, tested, state).model_copy(update={"cut": _cut(study, left_out, state.left_out)})
    study.write("promotion.json", promotion.model_dump_json(indent=2))
    logger.info("%s", promotion.reason)
    return promotion


def run_missing(study: Study, runner: Runner, specs: Iterable[TrialSpec], on_event: OnEvent) -> None:
    """Run the requested trials that have no result yet."""
    waiting = {spec.id: spec for spec in specs if study.trial(spec.id).result is None}
    for spec in waiting.values():
        runner.submit(spec)
    while waiting:
        for event in runner.wait():
            on_event(event)
            if isinstance(event, DoneEvent):
                waiting.pop(event.trial_id, None)


def next_number(study: Study) -> int:
    """The number of the next trial."""
    return max((trial.spec.number for trial in study.trials()), default=-1) + 1


def _race(study: Study, field: Competition, tested: Retested) -> Race:
    return race(
        len(field.arms),
        tested.results(),
        budget=field.budget(study),
        confidence=study.config.promotion.confidence,
        judge=tested.judge,
        fits=_fits(study, tested) if study.config.budget.hours is not None else None,
    )


def _fits(study: Study, tested: Retested) -> Callable[[Sequence[Key]], int | None]:
    """How many re-tests of a round the budget has room for, by what had been spent when the round began."""
    trials = {trial.spec.id: trial for trial in study.trials()}
    searched = max((t.spec.number for t in trials.values() if t.spec.stage in SEARCH_STAGES), default=-1)

    def fits(whole: Sequence[Key]) -> int | None:
        found = (trials.get(tested.spec(*key).id) for key in whole)
        begun = [trial for trial in found if trial is not None and trial.spec.number > searched]
        first = min((trial.spec.number for trial in begun), default=math.inf)
        since = min((trial.result.cost.started_at for trial in begun if trial.result), default=math.inf)
        before = [trial for trial in trials.values() if trial.spec.number < first]
        return Allowance(study, before, since).retests(search_fidelity(study))

    return fits


def _cut(study: Study, trials: int, retests: int) -> tuple[str, ...]:
    """What the budget had no room for, in words."""
    left = {f"{trials} of the search's trials": trials, f"up to {retests} more re-tests": retests}
    limit = f"the budget of {study.config.budget.hours or 0:g} {unit(study.config)} had no room for"
    return tuple(f"{limit} {what}" for what, number in left.items() if number)


def _decide(field: Competition, tested: Retested, state: Race) -> Promotion:
    belief = state.belief
    if belief is None:
        raise PromotionFailed("no re-test finished; see the reasons in trials/*/result.json and run again")
    column = {field.arms[number].arm: place for place, number in enumerate(belief.arms)}
    seeds = 1 + max(seed for _, seed in state.asked)
    candidates = [
        _candidate(one, tested.trials(number, seeds), belief, number) for number, one in enumerate(field.arms)
    ]
    by_arm = {candidate.arm: candidate for candidate in candidates}
    leader, winner = (field.arms[number].arm for number in (belief.leader, after_ties(belief, field.fixed)))
    rivals = [field.arms[number].arm for number in field.fixed if number in belief.arms]
    low, high = belief.interval(column[winner])
    promotion = Promotion(
        rule=RULE,
        candidates=candidates,
        winner=winner,
        reason="",
        value=Value(mean=float(belief.means[column[winner]]), low=low, high=high),
        confidence=belief.best_of([column[winner], *(place for arm, place in column.items() if arm != winner)]),
        clear=state.clear,
        as_good={arm: belief.at_least(column[arm], column[winner]) for arm in rivals if arm != winner},
        overstatement=Overstatement(
            winner=_overstated(by_arm[winner]),
            luckiest=_overstated(by_arm[field.luckiest]) if field.luckiest else None,
        ),
        spent=state.spent,
        users=belief.users,
    )
    tied = (leader, belief.at_least(column[winner], column[leader])) if winner != leader else None
    return promotion.model_copy(update={"reason": _reason(promotion, tied)})


def _overstated(candidate: Candidate) -> float | None:
    if candidate.search_value is None or candidate.estimate is None:
        return None
    return candidate.search_value - candidate.estimate


def _reason(promotion: Promotion, tied: tuple[str, float] | None) -> str:
    """In words; `tied` is the arm that the winner ties with, and the probability to be at least as good."""
    best, value = promotion.best, promotion.value
    assert value is not None
    assert promotion.confidence is not None
    text = f"{best.arm} ({Architecture(best.bits).text}) is worth a validation MRR of {value.mean:.4f} "
    text += f"({LEVEL:.0%}: {value.low:.4f} to {value.high:.4f}) after {promotion.spent} re-tests with fresh seeds"
    if tied is not None:
        text += f"; it is at least as good as {tied[0]} with a probability of {tied[1]:.2f}, and a fixed arm wins ties"
    else:
        text += f"; it is the best of all {len(promotion.candidates)} arms with a probability of "
        text += f"{promotion.confidence:.2f}"
    if promotion.as_good:
        chances = ", ".join(f"{arm} {chance:.2f}" for arm, chance in promotion.as_good.items())
        text += f"; that a fixed arm is at least as good: {chances}"
    overstated = promotion.overstatement.winner if promotion.overstatement else None
    if best.search_value is not None and overstated is not None:
        promised = "too much" if overstated > 0 else "too little"
        text += f"; its score in the search, {best.search_value:.4f}, was {abs(overstated):.4f} {promised}"
    return text


def _candidate(one: Competitor, trials: Sequence[Trial], belief: Belief, number: int) -> Candidate:
    values = [trial.objective for trial in trials if trial.objective is not None]
    column = belief.arms.index(number) if number in belief.arms else None
    return Candidate(
        arm=one.arm,
        bits=one.bits,
        weights=one.weights,
        trials=[trial.spec.id for trial in trials],
        values=values,
        mean=statistics.fmean(values) if values else None,
        stderr=statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        search_value=one.search_value,
        estimate=None if column is None else float(belief.means[column]),
        interval=None if column is None else belief.interval(column),
    )
