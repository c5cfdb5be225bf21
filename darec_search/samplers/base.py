"""The contract of a sampler, and the history that every sampler is a function of.

Life cycle: `ask` for a point, run it, `tell` its value (or `tell_failed`); any number may be under way, which the
caller names in `pending`. What `ask` returns is a function of the seed, the space, the results so far and `pending`, of
nothing else: a sampler that is built anew and told the same results goes on as the old one would have.

Some samplers also learn from cheaper evaluations (`use_fidelities`): then `suggest` takes the place of `ask`, and says
at which fidelity the point is to be tried.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from darec_search.space import Point, SearchSpace


class Options(BaseModel):
    """Keyword options of a sampler (`search.sampler_options`); every sampler extends it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Observation:
    """One result."""

    point: Point
    value: float
    stderr: float | None = None
    fidelity: int = 0
    """0 is the target; larger ones are cheaper."""


@dataclass(frozen=True)
class Suggestion:
    """A point to evaluate, and at which fidelity."""

    point: Point
    fidelity: int = 0


@dataclass(frozen=True)
class Recommendation:
    """A design worth keeping, and what its noiseless value is believed to be.

    Args:
        point: the design.
        mean: expected noiseless value.
        low: lower end of the 90 % interval of the noiseless value; None where nothing tells the noise.
        high: its upper end, likewise.
    """

    point: Point
    mean: float
    low: float | None = None
    high: float | None = None


LEVEL = 0.9
"""Probability that the interval of a `Recommendation` holds the noiseless value."""


@dataclass
class History:
    """What a sampler was told, in order."""

    observations: list[Observation] = field(default_factory=list)
    failures: list[Point] = field(default_factory=list)
    infeasible: list[Point] = field(default_factory=list)
    """Those of the failures that were the design's own fault."""

    def __len__(self) -> int:
        return len(self.observations) + len(self.failures)

    def points(self) -> list[Point]:
        """Every point that is done with: it has a value at the target or is among `given_up`. Once for every result."""
        return [o.point for o in self.observations if o.fidelity == 0] + self.given_up()

    def given_up(self) -> list[Point]:
        """Failures that are not to be tried again: by the design's own fault, or for whatever reason but repeatedly."""
        infeasible, counts = set(self.infeasible), Counter(self.failures)
        return [point for point in self.failures if point in infeasible or counts[point] > 1]

    def unreliable(self) -> set[Point]:
        """Points that have failed by their own fault at least as often as they gave a value."""
        values = Counter(observation.point for observation in self.observations)
        return {point for point, count in Counter(self.infeasible).items() if count >= values[point]}

    def means(self) -> dict[Point, float]:
        """Mean value of each evaluated point, in order of first telling."""
        values: dict[Point, list[float]] = {}
        for observation in self.observations:
            values.setdefault(observation.point, []).append(observation.value)
        return {point: math.fsum(of_point) / len(of_point) for point, of_point in values.items()}


class Sampler(ABC):
    """Proposes points; larger values are better.

    Args:
        space: the designs.
        seed: with the history it decides every proposal.
        options: the sampler's own options.
    """

    def __init__(self, space: SearchSpace, seed: int, options: Options) -> None:
        self.space = space
        self.seed = seed
        self.options = options
        self.history = History()
        self.costs: tuple[float, ...] = (1.0,)
        """Of an evaluation at each fidelity; the target's is 1."""

    @property
    def learns_from_related(self) -> bool:
        """Whether `learn_from` is understood."""
        return False

    def learn_from(self, studies: Sequence[Sequence[Observation]]) -> None:
        """Take results of related problems as prior knowledge, believed in as far as they predict this one's.

        Call it once, before the first `ask`. Results of the same problem are told by `tell` instead.

        Args:
            studies: results of each problem, at least one, as points of this space.

        Raises:
            ValueError: if a point lies outside the space, or the sampler does not learn from related problems.
        """
        for observation in itertools.chain.from_iterable(studies):
            self._require(observation.point)
        self._learn_from(studies)

    @property
    def learns_from_fidelities(self) -> bool:
        """Whether `use_fidelities` is understood."""
        return False

    def use_fidelities(self, costs: Sequence[float]) -> None:
        """Take cheaper evaluations too: fidelity k is the k-th of these; 0 is the target, whose optimum is wanted.

        Call it at most once, before anything else.

        Args:
            costs: of an evaluation at each cheaper fidelity, relative to the target's, falling; at least one.

        Raises:
            ValueError: if they do not fall from below 1 and stay above 0, or the sampler knows no fidelities.
        """
        if not costs or any(low >= high for high, low in itertools.pairwise((1.0, *costs))) or costs[-1] <= 0:
            raise ValueError(f"costs of cheaper fidelities fall from below 1 and are positive, got {list(costs)}")
        self._use_fidelities((1.0, *costs))

    def suggest(self, pending: Sequence[Suggestion] = ()) -> Suggestion:
        """The next point to evaluate, and at which fidelity. A point that has a value is not tried so cheaply again.

        Args:
            pending: what is under way.

        Raises:
            ValueError: if a pending point or fidelity is none of the sampler's.
        """
        for suggestion in pending:
            self._require(suggestion.point, suggestion.fidelity)
        return self._propose_at(list(pending), self._rng(pending))

    def suggest_together(
        self, pending: Sequence[Suggestion], count: int, chosen: Sequence[Suggestion] = ()
    ) -> list[Suggestion]:
        """A block of points that know the same results, each the ones before it; a sampler may think once for all.

        A block can be had in parts: the first c, and what follows them when they are named as `chosen`.

        Args:
            pending: what is under way apart from the block.
            count: points wanted, at least 1.
            chosen: what of the block has been suggested before.

        Raises:
            ValueError: if a point or fidelity under way is none of the sampler's.
        """
        for suggestion in (*pending, *chosen):
            self._require(suggestion.point, suggestion.fidelity)
        return self._propose_together(list(pending), count, list(chosen))

    def ask(self, pending: Sequence[Point] = ()) -> Point:
        """The next point to evaluate at the target.

        Args:
            pending: points under way; none of them is proposed while a design without a result is left.

        Raises:
            ValueError: if a pending point lies outside the space.
        """
        for point in pending:
            self._require(point)
        return self._propose(list(pending), self._rng(pending))

    def tell(self, point: Point, value: float, stderr: float | None = None, fidelity: int = 0) -> None:
        """Report a result; the point need not have been asked for. A value that is not finite counts as a failure.

        Args:
            point: what was evaluated.
            value: the objective.
            stderr: its standard error, where known.
            fidelity: how it was evaluated.

        Raises:
            ValueError: if the point lies outside the space, or the fidelity is none of the sampler's.
        """
        if not math.isfinite(value):
            self.tell_failed(point, f"the objective is {value}", fidelity=fidelity)
            return
        known = stderr if stderr is not None and math.isfinite(stderr) else None
        self._require(point, fidelity)
        self._record(Observation(point, float(value), known, fidelity))

    def tell_failed(self, point: Point, reason: str, *, by_design: bool = True, fidelity: int = 0) -> None:
        """Report that a point gave no value.

        Args:
            point: what was evaluated.
            reason: why, for the record.
            by_design: it was the design's own fault, such as out of memory or divergence: designs like it may fail
                too, and it is not proposed again while others are left. A lost worker is no such fault: the design may
                be proposed again, once.
            fidelity: how it was to be evaluated.

        Raises:
            ValueError: if the point lies outside the space, or the fidelity is none of the sampler's.
        """
        self._require(point, fidelity)
        if by_design:
            self.history.infeasible.append(point)
        self._record_failure(Suggestion(point, fidelity), reason)

    def best(self) -> Point:
        """The recommended point among the evaluated ones.

        Raises:
            ValueError: if no value was told yet.
        """
        return self.recommend()[0].point

    def recommend(self, count: int = 1) -> list[Recommendation]:
        """The `count` best of the evaluated points with their values, best first; fewer when fewer were evaluated.

        Points that have also failed by their own fault, at least as often as not, come after all others.

        Raises:
            ValueError: if no value was told yet.
        """
        if not self.history.observations:
            raise ValueError("there is no best point yet: tell the sampler at least one value first")
        unreliable = self.history.unreliable()
        listed = self._recommend(count + len(unreliable))
        return sorted(listed, key=lambda row: row.point in unreliable)[:count]

    @abstractmethod
    def _propose(self, pending: list[Point], rng: np.random.Generator) -> Point:
        """The next point; `rng` is the only randomness it may use."""

    def _propose_at(self, pending: list[Suggestion], rng: np.random.Generator) -> Suggestion:
        """As `_propose`, for samplers that know fidelities."""
        return Suggestion(self._propose([suggestion.point for suggestion in pending], rng))

    def _propose_together(self, pending: list[Suggestion], count: int, chosen: list[Suggestion]) -> list[Suggestion]:
        """By default one after the other."""
        running = [*pending, *chosen]
        for _ in range(count):
            running.append(self._propose_at(running, self._rng(running)))
        return running[-count:]

    def _use_fidelities(self, costs: tuple[float, ...]) -> None:
        raise ValueError(f"{type(self).__name__} does not learn from cheaper evaluations")

    def _learn_from(self, studies: Sequence[Sequence[Observation]]) -> None:
        raise ValueError(f"{type(self).__name__} does not learn from related problems")

    def _recommend(self, count: int) -> list[Recommendation]:
        """By default the points with the best mean values."""
        means = self.history.means()
        best = sorted(means, key=means.__getitem__, reverse=True)[:count]
        return [_measured(point, self.history.observations) for point in best]

    def _record(self, observation: Observation) -> None:
        self.history.observations.append(observation)

    def _record_failure(self, tried: Suggestion, reason: str) -> None:
        self.history.failures.append(tried.point)

    def _rng(self, pending: Sequence[object]) -> np.random.Generator:
        """A generator that depends on the seed, the number of results and the number of pending points alone."""
        return np.random.default_rng([self.seed % 2**64, len(self.history), len(pending)])

    def _require(self, point: Point, fidelity: int = 0) -> None:
        if point not in self.space:
            raise ValueError(f"{point} lies outside the search space")
        if not 0 <= fidelity < len(self.costs):
            raise ValueError(f"{fidelity} is no fidelity of this search; it has {len(self.costs)}")


def _measured(point: Point, observations: Sequence[Observation]) -> Recommendation:
    """Mean value of a point; its interval from known standard errors, or else from repeats (Student's t)."""
    own = [observation for observation in observations if observation.point == point]
    count = len(own)
    mean = math.fsum(observation.value for observation in own) / count
    known = [observation.stderr for observation in own if observation.stderr is not None]
    if len(known) == count:
        half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.hypot(*known) / count
    elif count > 1:
        stderr = float(np.std([observation.value for observation in own], ddof=1)) / math.sqrt(count)
        half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * stderr
    else:
        return Recommendation(point, mean)
    return Recommendation(point, mean, mean - half, mean + half)


def unseen(space: SearchSpace, rng: np.random.Generator, seen: Iterable[Point], pending: Iterable[Point]) -> Point:
    """A random design that was neither seen nor is pending; when there is none, one that is not pending, else any."""
    pending = set(pending)
    for taken in (pending | set(seen), pending):
        if len(taken) < space.size:
            return _outside(space, rng, taken)
    return space.sample(rng)


def _outside(space: SearchSpace, rng: np.random.Generator, taken: set[Point]) -> Point:
    for _ in range(100):
        point = space.sample(rng)
        if point not in taken:
            return point
    # Nearly everything is taken, so the space is small enough to be walked through.
    return next(point for point in space.points() if point not in taken)


def spread(space: SearchSpace, seed: int, count: int) -> list[Point]:
    """`count` random designs in which every bit is 0 and 1, and every level occurs, equally often (±1)."""
    rng = np.random.default_rng([seed % 2**64, _STREAM])
    sizes = [2] * space.bits + [len(levels) for levels in space.weights.values()]
    columns = [rng.permutation((np.arange(count) + rng.integers(size)) % size) for size in sizes]
    return [space.decode(row) for row in np.stack(columns, axis=1)]


_STREAM = int.from_bytes(hashlib.sha256(b"start design").digest()[:4], "big")
"""Keeps the start designs' random stream apart from that of the proposals."""
