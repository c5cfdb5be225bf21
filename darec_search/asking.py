"""Where a part of the search gets its trials from: a list, or a sampler that thinks in a thread of its own.

A sampler's proposals follow the order of results, never the clock. With `width` trials under way (slots, and
`search.ahead` more), the k-th proposal (from 0) knows the first k - width + 1 results in the order in which they came,
and has the other trials as pending ones. How long the sampler thinks, and what ends meanwhile, changes nothing.

Where many trials are under way, g proposals make a block (`samplers.together`; g = 1 up to 64): those of
k = 0 … g - 1, g … 2g - 1 and so on know what the first of them knows, and the sampler thinks once for all of them. A
block that a stop has cut in two is completed from what its first part knew.

A spec records whose results were told between the proposal before it and its own (`told`). So a study that is started
again tells them in the same order, then takes the results that no proposal knew yet one by one, as they ended, and asks
as it would have done without the stop.

With cheaper fidelities (`search.fidelities`) the sampler says of each proposal at which of them it is to be tried; the
budget counts costs.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from darec_search import samplers, warm_start
from darec_search.budget import Allowance
from darec_search.samplers.base import Sampler, Suggestion
from darec_search.space import Point, SearchSpace
from darec_search.stopping import EarlyStopping
from darec_search.study import Study, Trial
from darec_search.trial import Fidelity, Stage, TrialSpec, make_spec

_OWN_FAULT = ("finished", "out_of_memory", "diverged", "timed_out")
"""Ends without a usable value that are the design's own fault; `finished` is one whose value is no number."""


_ROUNDING = 1e-9


class Source(ABC):
    """Gives the trials of a part of the search, one after the other.

    Args:
        stopping: follows the curves of its trials.
    """

    def __init__(self, stopping: EarlyStopping) -> None:
        self.stopping = stopping
        self.left_out = 0
        """Trials that the budget has no room for, as far as is known."""

    @abstractmethod
    def next(self, patience: float | None) -> TrialSpec | None:
        """The next trial to run, recorded in the study folder.

        Args:
            patience: seconds to wait for one that is being computed; None waits as long as it takes.

        Returns:
            None if it is not there yet (`thinking`), needs more results first, or none is left.
        """

    @property
    def thinking(self) -> bool:
        """Whether a trial is being computed that `next` will give."""
        return False

    def done(self, trial: Trial) -> None:
        """A trial has its result."""
        self.stopping.ended(trial)


class Listed(Source):
    """Trials that are known beforehand; those with a result are left out, found under whatever number and stage."""

    def __init__(self, study: Study, stage: Stage, fidelity: Fidelity, runs: Sequence[tuple[Point, int]]) -> None:
        super().__init__(EarlyStopping(study.config.search.early_stopping, study.config.search.objective))
        self._ids: list[str] = []
        self._study, self._stage = study, stage
        self._number = _next_number(study)
        self._waiting: deque[TrialSpec] = deque()
        for point, seed in runs:
            spec = make_spec(study.id, self._number, stage, point, seed, fidelity)
            self._ids.append(spec.id)
            self._waiting.append(spec)
        outside = [trial for trial in study.trials() if trial.spec.id not in set(self._ids)]
        self._allowance = Allowance(study, outside)

    def next(self, patience: float | None) -> TrialSpec | None:
        while self._waiting:
            if not self._may_ask(self._waiting[0]):
                self.left_out = len(self._waiting)
                return None
            trial = self._study.request(self._waiting.popleft().model_copy(update={"number": self._number}))
            if trial.spec.number == self._number:
                self._number += 1
            if trial.result is None:
                return trial.spec
            self.stopping.ended(trial)
        self.left_out = 0
        return None

    def asked(self) -> list[Trial]:
        """Those of its trials that have been asked for, in order."""
        there = [trial_id for trial_id in self._ids if (self._study.trial_folder(trial_id) / "spec.json").exists()]
        return [self._study.trial(trial_id) for trial_id in there]

    def _may_ask(self, spec: TrialSpec) -> bool:
        """Whether a trial was asked for before, or the budget has room for it."""
        if not self._allowance.limited:
            return True
        asked = self.asked()
        if any(trial.spec.id == spec.id for trial in asked):
            return True
        ended = [trial for trial in asked if trial.result]
        return self._allowance.search_goes_on(ended, [trial.spec for trial in asked if trial.result is None])


@dataclass(frozen=True)
class Proposing:
    """A part of the search in which a sampler proposes points of `space`.

    Args:
        study: the study.
        stage: name of the part.
        space: what the sampler sees.
        weights: the same for all trials of the part.
        fidelities: how much of the training each may get; the first is the target, the others are cheaper, dearest
            first.
    """

    study: Study
    stage: Stage
    space: SearchSpace
    weights: Mapping[str, float]
    fidelities: tuple[Fidelity, ...]

    def suggestion(self, spec: TrialSpec) -> Suggestion:
        """A trial as the sampler suggests it."""
        return Suggestion(self.seen(spec), self.fidelities.index(spec.fidelity))

    def share(self, spec: TrialSpec) -> float:
        """The part of a trial at the target that it costs when it runs to its end."""
        return spec.fidelity.cost / self.fidelities[0].cost

    def spent(self, trial: Trial) -> float:
        """The part of a trial at the target that it did cost."""
        whole = self.share(trial.spec)
        if trial.result is None or trial.result.status != "pruned":
            return whole
        return whole * trial.result.curve[-1]["epoch"] / trial.spec.fidelity.epochs

    def seen(self, spec: TrialSpec) -> Point:
        """A trial as the sampler sees it."""
        return Point(spec.bits, {name: level for name, level in spec.weights.items() if name in self.space.weights})

    def trials(self) -> list[Trial]:
        """Its trials by number; those of an earlier config (levels, epochs, best λ) are not among them."""
        return [
            trial
            for trial in self.study.trials()
            if trial.spec.stage == self.stage
            and trial.spec.fidelity in self.fidelities
            and self.seen(trial.spec) in self.space
            and trial.spec.weights == {**self.weights, **self.seen(trial.spec).weights}
        ]

    def sampler(self) -> Sampler:
        """A fresh sampler, which knows nothing but what `search.warm_start` names."""
        config = self.study.config
        target, *cheaper = self.fidelities
        costs = [fidelity.cost / target.cost for fidelity in cheaper]
        options = config.search.sampler_options
        sampler = samplers.create(config.search.sampler, self.space, config.seed, costs=costs, **options)
        warm_start.tell(sampler, self.study, self.space, self.weights, target)
        return sampler

    def told(self, trials: Iterable[Trial]) -> Sampler:
        """A fresh sampler that knows what came of these trials, failures included, in the order in which they ended."""
        sampler = self.sampler()
        for trial in sorted((trial for trial in trials if trial.result), key=_end):
            self.tell(sampler, trial)
        return sampler

    def tell(self, sampler: Sampler, trial: Trial) -> None:
        """Report a trial's result to a sampler."""
        tried, (value, stderr) = self.suggestion(trial.spec), trial.estimate(self.study.config.search.objective)
        if value is not None and math.isfinite(value):
            sampler.tell(tried.point, value, stderr, tried.fidelity)
        else:
            reason = (trial.result and trial.result.reason) or trial.status
            by_design = trial.status in _OWN_FAULT
            sampler.tell_failed(tried.point, reason, by_design=by_design, fidelity=tried.fidelity)


class Proposed(Source):
    """Lets the sampler propose `search.trials` trials, of which earlier starts have done some.

    A trial that was stopped early counts by the epochs that it had, one at a cheaper fidelity by its cost; what they
    leave pays for more proposals. Those under way count as if they ran to their end.

    The sampler lives in a thread of its own, so that results are taken in while it thinks; `with` ends the thread.

    Args:
        part: the part of the search.
        width: trials under way at a time.
        known: finished trials of other parts that the sampler is told first.
    """

    def __init__(self, part: Proposing, width: int, known: Sequence[Trial] = ()) -> None:
        config, trials = part.study.config.search, part.trials()
        super().__init__(EarlyStopping(config.early_stopping, config.objective))
        history, self._arrived = _order_of_telling(trials)
        self._part, self._width = part, width
        self._number = _next_number(part.study)
        self._trials = config.trials
        self._spent = sum(part.spent(trial) for trial in history)
        """Whole trials' worth of training that the told results took."""
        self._unfinished = deque(trial.spec for trial in trials if trial.result is None)
        told = {trial.spec.id for trial in history}
        self._untold = {trial.spec.id: trial.spec for trial in trials if trial.spec.id not in told}
        """Trials that the sampler has proposed and knows no result of, by number."""
        self._history = history
        """Trials whose results the sampler knows, in the order in which it was told."""
        own = {trial.spec.id for trial in trials}
        self._allowance = Allowance(part.study, [t for t in part.study.trials() if t.spec.id not in own])
        self._news = [*known, *history]
        """What the sampler is told with the next question, before the results that its spec records."""
        self._sampler: Sampler | None = None
        """Belongs to the thread."""
        for trial in (*known, *history, *self._arrived):
            self.stopping.ended(trial)
        self._together = samplers.together(config.sampler, width)
        self._asked = len(trials)
        self._block = {trial.spec.id for trial in trials[_start_of_block(trials, self._together) :]}
        """Trials of the block that is being proposed."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._answer: Future[list[Suggestion]] | None = None
        self._ready: deque[Suggestion] = deque()
        """The rest of the block."""
        self._told: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    @property
    def thinking(self) -> bool:
        return self._answer is not None

    def next(self, patience: float | None) -> TrialSpec | None:
        if self._unfinished:
            return self._unfinished.popleft()
        if not self._is_ready(patience):
            return None
        spec = self._request(self._ready.popleft())
        self._untold[spec.id] = spec
        self._block.add(spec.id)
        self._told = []
        self._asked += 1
        return spec

    def done(self, trial: Trial) -> None:
        super().done(trial)
        self._arrived.append(trial)

    def best(self) -> Point:
        """The sampler's recommendation from all results; for the end, when nothing more is asked.

        Raises:
            ValueError: if none was told that has a value.
        """
        news, self._news = [*self._news, *self._arrived], []
        self._arrived.clear()
        return self._thread.submit(self._recommend, news).result()

    def _is_ready(self, patience: float | None) -> bool:
        """Whether the next proposal is there, and there is room for it; if not, the sampler thinks if it can."""
        if self._answer is None:
            needed = self._needed()
            if needed is None:
                return False
            self._ask(needed)
        if self._answer is not None:
            if not wait([self._answer], patience).done:
                return False
            self._ready.extend(self._answer.result())
            self._answer = None
        return True

    def _ask(self, needed: int) -> None:
        """Let the sampler begin to think of a new block, or of the rest of one, if it is not there.

        Args:
            needed: results that a new block has to know.
        """
        if needed or self._asked % self._together == 0:
            self._block.clear()
            self._ready.clear()
        if self._ready:
            return
        results = [self._arrived.popleft() for _ in range(needed)]
        self._told = [trial.spec.id for trial in results]
        for trial_id in self._told:
            del self._untold[trial_id]
        pending = [self._part.suggestion(spec) for spec in self._untold.values() if spec.id not in self._block]
        chosen = [self._part.suggestion(spec) for spec in self._untold.values() if spec.id in self._block]
        count = self._together - self._asked % self._together
        self._answer = self._thread.submit(self._think, [*self._news, *results], pending, chosen, count)
        self._news = []
        self._history += results
        self._spent += sum(self._part.spent(trial) for trial in results)

    def _needed(self) -> int | None:
        """How many more results the next proposal has to know; None while they are not there, or when all is spent.

        So many that `width - 1` trials remain unknown at the start of a block, and that what is spent and under way
        leaves room for a whole trial, by `search.trials` and by the budget.
        """
        self.left_out = 0
        least = len(self._untold) - self._width + 1 if self._asked % self._together == 0 else 0
        if least > len(self._arrived):
            return None
        under_way = sum(self._part.share(spec) for spec in self._untold.values())
        left = [0.0, *itertools.accumulate(self._part.share(t.spec) - self._part.spent(t) for t in self._arrived)]
        for known in range(max(0, least), len(left)):
            room = self._trials + _ROUNDING - (self._spent + under_way - left[known])
            if room >= 1 and self._within_budget(list(itertools.islice(self._arrived, known))):
                self.left_out = 0
                return known
            self.left_out = max(0, math.floor(room))
        return None

    def _within_budget(self, results: Sequence[Trial]) -> bool:
        """Whether the budget has room for a trial once these results are known besides those that were told."""
        known = {trial.spec.id for trial in results}
        unknown = [spec for trial_id, spec in self._untold.items() if trial_id not in known]
        return self._allowance.search_goes_on([*self._history, *results], unknown)

    def _think(
        self, news: Sequence[Trial], pending: Sequence[Suggestion], chosen: Sequence[Suggestion], count: int
    ) -> list[Suggestion]:
        sampler = self._informed(news)
        return sampler.suggest_together(pending, count, chosen) if self._together > 1 else [sampler.suggest(pending)]

    def _recommend(self, news: Sequence[Trial]) -> Point:
        return self._informed(news).best()

    def _informed(self, news: Sequence[Trial]) -> Sampler:
        """The sampler, built at the first call, which takes its imports off the controller's thread too."""
        if self._sampler is None:
            self._sampler = self._part.sampler()
        for trial in news:
            self._part.tell(self._sampler, trial)
        return self._sampler

    def _request(self, suggestion: Suggestion) -> TrialSpec:
        """A fresh trial of a point; a point that has been tried, at whatever fidelity, gets another seed."""
        part, study, point = self._part, self._part.study, suggestion.point
        whole = Point(point.bits, {**part.weights, **point.weights})
        for seed in itertools.count(study.config.seed):
            specs = [make_spec(study.id, self._number, part.stage, whole, seed, f) for f in part.fidelities]
            if not any((study.trial_folder(spec.id) / "spec.json").exists() for spec in specs):
                self._number += 1
                asked = specs[suggestion.fidelity].model_copy(update={"told": tuple(self._told)})
                return study.request(asked).spec
        raise AssertionError("unreachable: there is always another seed")


def _order_of_telling(trials: Sequence[Trial]) -> tuple[list[Trial], deque[Trial]]:
    """Results that proposals have known, in the order of telling; and those that none has, in the order of ending."""
    ended = {trial.spec.id: trial for trial in trials if trial.result}
    told = [ended.pop(trial_id) for trial in trials for trial_id in trial.spec.told if trial_id in ended]
    return told, deque(sorted(ended.values(), key=_end))


def _start_of_block(trials: Sequence[Trial], together: int) -> int:
    """Place of the first trial of the block to which the next proposal belongs, of which there may be none yet.

    Results begin a block too: near the end of the budget one more proposal may have to wait for what a trial leaves.
    """
    if len(trials) % together == 0:
        return len(trials)
    starts = (place for place, trial in enumerate(trials) if place % together == 0 or trial.spec.told)
    return max(starts)


def _end(trial: Trial) -> tuple[float, int]:
    return (trial.result.cost.ended_at if trial.result else math.inf, trial.spec.number)


def _next_number(study: Study) -> int:
    return max((trial.spec.number for trial in study.trials()), default=-1) + 1
