"""From results to the next design: surrogate, acquisition and optimiser in one pure function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from darec_search.samplers.acquisition import MixtureLogEI, log_expected_gain, log_expected_improvement
from darec_search.samplers.base import LEVEL, Observation, Recommendation, Suggestion
from darec_search.samplers.candidates import Candidates
from darec_search.samplers.feasibility import Feasibility
from darec_search.samplers.fidelity import Links, comparable, draw_links, neutral_links, target_is_due
from darec_search.samplers.kernels import StructuredKernels, bank
from darec_search.samplers.local_search import Acquisition, rounded
from darec_search.samplers.prior import PriorMeans, WithPriors
from darec_search.samplers.prob_reparam_optimizer import ProbabilisticReparameterization
from darec_search.samplers.surrogate import Data, Kernels, StructuredMixture, Trend
from darec_search.samplers.tables import WithTables, find_tables
from darec_search.space import Point, SearchSpace

_BANK_SEED = 2024
_CONDITIONED_AT_MOST = 500
"""Observations behind the acquisition, whose every value costs their square; recommendations use all."""
_KEPT = 12
"""Bank entries that make the mixture."""
_COMPARED = 16
"""Designs, best first by the acquisition, that compete for the largest gain for its cost."""
_WITH_NEIGHBOURS = 4
"""So many of them with all designs one step away, as the best by the acquisition have often been tried cheaply."""
_POOL = 1024
"""Best designs by the acquisition that may compete for the places of a block, beside neighbours."""
_POOL_WITH_NEIGHBOURS = (16, 32)
"""So many of them with all designs one step away, and so many of the best of all these once more: what is left around
the optima once they are taken is often two steps away."""
_LINKS = 256
"""Links of fidelities that are weighed against each other."""
_MATCHED = 16
"""Best settings of the bank, and best links, of which all pairs are weighed."""
_WHOLE_BANK_UP_TO = 100
"""Observations up to which intervals come from all entries: 12 of 64 hold 0.85 of the values where they say 0.9."""


class Proposer:
    """Bayesian optimisation over one space, without state.

    Args:
        space: the designs.
        bank_size: M, hyperparameter settings that are weighed against each other.
        noise: range of noise variance over signal amplitude in the bank.
        polish: end with a local search; else with a draw z ~ p(z | θ), as Algorithm 1 of the paper does.
    """

    def __init__(
        self,
        space: SearchSpace,
        bank_size: int = 256,
        noise: tuple[float, float] = (0.01, 3.0),
        polish: bool = True,
    ) -> None:
        self.space = space
        self._polish = polish
        self.optimizer = ProbabilisticReparameterization(space)
        self._kernels = StructuredKernels(space)
        generator = torch.Generator().manual_seed(_BANK_SEED)
        self._bank = bank(len(self._kernels), bank_size, noise, generator)
        self._covariances: Kernels = self._kernels
        self._trend: Trend | None = None
        self.costs: tuple[float, ...] = (1.0,)
        """Of an evaluation at each fidelity; the target's is 1."""

    def learn_from(self, studies: Sequence[Sequence[Observation]]) -> None:
        """Take old studies' results as prior means (`prior.py`); call it once, on a proposer of a cold start.

        Args:
            studies: results of each, at least one, as points of this space.
        """
        priors = PriorMeans(self.space, [_prediction(self.space, study) for study in studies])
        if len(priors):
            weightings, noise, slopes = priors.extend(*self._bank, torch.Generator().manual_seed(_BANK_SEED))
            self._bank, self._trend = (weightings, noise), Trend(priors, slopes)
            self._covariances = WithPriors(self._kernels, priors)

    def model(self, observations: Sequence[Observation], keep: int = _KEPT, tables: bool = True) -> StructuredMixture:
        """The surrogate of at least one observation, of the `keep` best bank entries; the order does not matter.

        Values of cheaper fidelities are to be `comparable`; with them there are no tables.
        """
        observations = sorted(observations, key=lambda o: (tuple(self.space.encode(o.point)), o.value, o.fidelity))
        x = self.encode([observation.point for observation in observations])
        y = torch.tensor([observation.value for observation in observations], dtype=torch.float64)
        stderr = [observation.stderr for observation in observations]
        weightings, noise = self._bank
        if len(self.costs) == 1:
            data = Data.of(x, y, stderr)
            model = StructuredMixture(self._covariances, data, weightings, noise, keep, self._trend)
            return self._with_tables(model, data) if tables and self.space.bits else model
        data = Data.of(x, y, stderr, torch.tensor([observation.fidelity for observation in observations]))
        return self._linked(data, keep)

    def _with_tables(self, model: StructuredMixture, data: Data) -> StructuredMixture:
        """A mixture of the bank's and the tables, or the former alone unless tables are the more likely of the two.

        Before the results they are together as likely as one component of the bank: they are one idea more.
        """
        scored = StructuredMixture.standardised(data)
        tables = find_tables(self._kernels, scored.x, scored.y, scored.noise_scale)
        of_tables = tables.log_evidence - math.log(len(self._kernels))
        of_bank = model.weights.log() + model.log_evidence
        if float(torch.logsumexp(of_tables, 0)) < model.log_evidence:
            return model
        entries, count = len(model.weights), len(tables)
        trend = model.trend
        if trend:
            trend = Trend(
                trend.features, torch.cat([trend.slopes, trend.slopes.new_zeros(count, trend.slopes.shape[1])])
            )
        return StructuredMixture(
            WithTables(self._covariances, self._kernels, tables),
            data,
            torch.block_diag(model.weightings, torch.eye(count, dtype=torch.float64)),
            torch.cat([model.noise, tables.noise]),
            entries + count,
            trend,
            log_evidence=torch.cat([of_bank, of_tables]),
        )

    def _linked(self, data: Data, keep: int) -> StructuredMixture:
        """The surrogate of several fidelities: of the best settings of the bank, each with each of the best links.

        Drawn together, a good setting would hardly ever meet good links.
        """

        def mixture(entries: Tensor, links: Links, best: int) -> StructuredMixture:
            trend = self._trend.of(entries) if self._trend else None
            weightings, noise = (part[entries] for part in self._bank)
            return StructuredMixture(self._covariances, data, weightings, noise, best, trend, links)

        size, fidelities = len(self._bank[1]), len(self.costs)
        settings = mixture(torch.arange(size), neutral_links(size, fidelities), _MATCHED).kept
        drawn = draw_links(_LINKS, fidelities, torch.Generator().manual_seed(_BANK_SEED))
        linked = mixture(settings[:1].expand(_LINKS), drawn, _MATCHED).kept
        pairs = torch.cartesian_prod(settings, linked)
        return mixture(pairs[:, 0], drawn.of(pairs[:, 1]), keep)

    def model_for_intervals(self, observations: Sequence[Observation]) -> StructuredMixture:
        """The surrogate whose intervals hold what they say: of all bank entries, unless there are many observations."""
        return self.model(observations, self._kept_for_intervals(observations))

    def model_for_effects(self, observations: Sequence[Observation]) -> StructuredMixture:
        """The same of the bank alone: a table takes effects for exactly 0, which makes intervals of weak ones short."""
        return self.model(observations, self._kept_for_intervals(observations), tables=False)

    def _kept_for_intervals(self, observations: Sequence[Observation]) -> int:
        return len(self._bank[1]) if len(observations) <= _WHOLE_BANK_UP_TO else _KEPT

    def propose(
        self,
        observations: Sequence[Observation],
        failures: Sequence[Point],
        pending: Sequence[Suggestion],
        rng: np.random.Generator,
        infeasible: Sequence[Point] = (),
    ) -> Suggestion | None:
        """The design with the best acquisition value that has no result and is not under way.

        With cheaper fidelities the designs that the acquisition, a function of the target, finds best compete once
        more: design and fidelity with the largest gain for its cost are chosen. Only results at the target take a
        design out of the race, but it is not tried at the same fidelity or a cheaper one again.

        Args:
            observations: at least one.
            failures: designs without a value, not proposed again.
            pending: designs under way.
            rng: for the optimiser.
            infeasible: those of the failures that were the design's own fault; designs like them are avoided.

        Returns:
            None when no such design is left or, without the polish, was drawn.
        """
        look = self._look(observations, failures, pending, rng, infeasible)
        if not len(look.designs):
            return None
        best = self._points(look.designs[:_COMPARED])
        if len(self.costs) == 1:
            return Suggestion(best[0])
        points = self._with_neighbours(best, _WITH_NEIGHBOURS, failures)
        x = self.encode(points)

        def log_gains(fidelity: int) -> Tensor:
            return log_expected_gain(look.model, x, look.incumbent, fidelity) + look.log_weight(x)

        return self._most_gain(points, look.tried, log_gains)

    def propose_together(
        self,
        observations: Sequence[Observation],
        failures: Sequence[Point],
        pending: Sequence[Suggestion],
        chosen: Sequence[Suggestion],
        count: int,
        rng: np.random.Generator,
        infeasible: Sequence[Point] = (),
    ) -> list[Suggestion]:
        """Designs that are tried at the same time, from one look at the results.

        The acquisition is optimised once. Its optima and their neighbours compete: the best is taken, counts as under
        way from then on (`Candidates`), and the best of the others is next.

        Args:
            observations: at least one.
            failures: designs without a value, not proposed again.
            pending: designs under way.
            chosen: those that were chosen together with the wanted ones, before them; not among `pending`.
            count: designs wanted.
            rng: for the optimiser.
            infeasible: as for `propose`.

        Returns:
            what follows `chosen`; fewer than `count` when no more candidates are left.
        """
        look = self._look(observations, failures, pending, rng, infeasible)
        points = list(dict.fromkeys([*self._pool(look, failures), *(suggestion.point for suggestion in chosen)]))
        x = self.encode(points)
        candidates = Candidates(look.model, x, look.incumbent, len(self.costs))
        weight = look.log_weight(x)
        together: list[Suggestion] = []
        for place in range(len(chosen) + count):
            following = chosen[place] if place < len(chosen) else None
            following = following or self._most_gain(
                points, [*look.tried, *together], lambda fidelity: candidates.log_gains(fidelity) + weight
            )
            if following is None:
                break
            candidates.choose(points.index(following.point), following.fidelity)
            together.append(following)
        return together[len(chosen) :]

    def _look(
        self,
        observations: Sequence[Observation],
        failures: Sequence[Point],
        pending: Sequence[Suggestion],
        rng: np.random.Generator,
        infeasible: Sequence[Point],
    ) -> _Look:
        """Fit the surrogate and optimise the acquisition."""
        observations = self._comparable(observations)
        model = self.model(_informative(observations))
        told = torch.unique(self.encode([observation.point for observation in observations]), dim=0)
        centres = self._centres(told, model.mean(told), rng)
        incumbent = self._incumbent(model, observations)
        running = list(dict.fromkeys(pending))
        fidelities = torch.tensor([suggestion.fidelity for suggestion in running], dtype=torch.long)
        model.pending(self.encode([suggestion.point for suggestion in running]), fidelities)
        feasible = (
            Feasibility(self._kernels, told, torch.unique(self.encode(infeasible), dim=0)) if infeasible else None
        )
        tried = [Suggestion(o.point, o.fidelity) for o in observations] + list(pending)
        exclude = self.encode([t.point for t in tried if t.fidelity == 0] + list(failures))
        values: Acquisition = MixtureLogEI(model, incumbent).values
        designs = self._best(_constrained(values, feasible), rng, centres, exclude)
        return _Look(model, incumbent, feasible, tried, designs)

    def _points(self, designs: Tensor) -> list[Point]:
        return [self.space.decode(design.numpy()) for design in designs]

    def _pool(self, look: _Look, failures: Sequence[Point]) -> list[Point]:
        """Designs that compete for the places of a block: the optima, and those one or two steps away."""
        first, second = _POOL_WITH_NEIGHBOURS
        points = self._with_neighbours(self._points(look.designs[:_POOL]), first, failures)
        x = self.encode(points)
        values = log_expected_improvement(look.model, x, look.incumbent) + look.log_weight(x)
        order = torch.sort(rounded(values), descending=True, stable=True).indices[:_POOL]
        return self._with_neighbours([points[place] for place in order.tolist()], second, failures)

    def _with_neighbours(self, best: Sequence[Point], count: int, failures: Sequence[Point]) -> list[Point]:
        """The best designs and those one step away from the first `count`, without failures."""
        near = [point for centre in best[:count] for point in self.space.neighbours(centre)]
        given_up = set(failures)
        return [point for point in dict.fromkeys([*best, *near]) if point not in given_up]

    def _best(self, values: Acquisition, rng: np.random.Generator, centres: Tensor, exclude: Tensor) -> Tensor:
        """Designs [m, D] with large values, best first; the first one is what the optimiser ends with."""
        if self._polish:
            return self.optimizer.optimize(values, rng, centres, exclude)[0]
        drawn = self.optimizer.draw(values, rng, centres, exclude)
        return exclude[:0] if drawn is None else drawn[None]

    def _most_gain(
        self, points: Sequence[Point], tried: Sequence[Suggestion], log_gains: Callable[[int], Tensor]
    ) -> Suggestion | None:
        """The design and fidelity with the largest gain for its cost; None when all have been tried.

        Args:
            points: designs that compete.
            tried: everything told and under way.
            log_gains: by fidelity the gain of trying each of them.
        """
        cheapest = {point: len(self.costs) for point in points}
        for known in tried:
            if known.point in cheapest:
                cheapest[known.point] = min(cheapest[known.point], known.fidelity)
        due = target_is_due(self.costs, [known.fidelity for known in tried])
        best, chosen = -math.inf, None
        for fidelity, cost in enumerate(self.costs[:1] if due else self.costs):
            gains = rounded(log_gains(fidelity) - math.log(cost)).tolist()
            for point, gain in zip(points, gains, strict=True):
                if fidelity < cheapest[point] and gain > best:
                    best, chosen = gain, Suggestion(point, fidelity)
        return chosen

    def _comparable(self, observations: Sequence[Observation]) -> Sequence[Observation]:
        return comparable(observations) if len(self.costs) > 1 else observations

    def _incumbent(self, model: StructuredMixture, observations: Sequence[Observation]) -> float:
        """The best noisy observation, each as it would be at the target."""
        best = []
        for fidelity in {observation.fidelity for observation in observations}:
            here = [observation for observation in observations if observation.fidelity == fidelity]
            y = torch.tensor([observation.value for observation in here], dtype=torch.float64)
            best.append(float(model.at_target(self.encode([o.point for o in here]), y, fidelity).max()))
        return max(best)

    def recommend(self, observations: Sequence[Observation], count: int) -> list[Recommendation]:
        """The evaluated designs with the highest posterior means, with credible intervals; best first."""
        observations = self._comparable(observations)
        points = list(dict.fromkeys(observation.point for observation in observations))
        model, x = self.model(observations), self.encode(points)
        means = model.mean(x)
        order = torch.sort(means.round(decimals=9), descending=True, stable=True).indices[:count]
        wide = self.model_for_intervals(observations) if len(observations) <= _WHOLE_BANK_UP_TO else model
        low, high = wide.interval(x[order], LEVEL)
        rows = zip(order.tolist(), means[order].tolist(), low.tolist(), high.tolist(), strict=True)
        return [Recommendation(points[row], mean, below, above) for row, mean, below, above in rows]

    def encode(self, points: Sequence[Point]) -> Tensor:
        """[n, D] float64."""
        width = self.space.bits + len(self.space.weights)
        rows = [self.space.encode(point) for point in points]
        return torch.from_numpy(np.array(rows, dtype=np.float64).reshape(-1, width))

    def _centres(self, told: Tensor, means: Tensor, rng: np.random.Generator) -> Tensor:
        """Where the optimiser starts: the four best designs by posterior mean, and one mutant of each."""
        order = torch.sort(means.round(decimals=9), descending=True, stable=True).indices
        best = told[order[:4]]
        drawn = self.encode([self.space.sample(rng) for _ in range(len(best))])
        redrawn = torch.from_numpy(rng.random(best.shape)) < 0.2
        return torch.cat([best, torch.where(redrawn, drawn, best)])


@dataclass(frozen=True)
class _Look:
    """What a proposal rests on.

    Args:
        model: the surrogate, designs under way included.
        incumbent: value to improve on.
        feasible: where failures tell it.
        tried: everything told and under way.
        designs: [m, D] encoded designs with large acquisition values, best first.
    """

    model: StructuredMixture
    incumbent: float
    feasible: Feasibility | None
    tried: list[Suggestion]
    designs: Tensor

    def log_weight(self, x: Tensor) -> Tensor | float:
        """[m] log of the chance that a design ends well, where failures tell it; it is added to the log of a gain."""
        return self.feasible.log_weight(x) if self.feasible else 0.0


def _constrained(values: Acquisition, feasibility: Feasibility | None) -> Acquisition:
    """Log of a gain with the chance that a design ends well, where failures tell it; their order does not matter."""
    return values if feasibility is None else lambda x: values(x) + feasibility.log_weight(x)


def _informative(observations: Sequence[Observation]) -> Sequence[Observation]:
    """All observations, or of many the best ones and as many of the others, spread over their values."""
    if len(observations) <= _CONDITIONED_AT_MOST:
        return observations
    ranked = sorted(observations, key=lambda observation: -observation.value)
    half = _CONDITIONED_AT_MOST // 2
    others = np.linspace(half, len(ranked) - 1, _CONDITIONED_AT_MOST - half).round().astype(int)
    return [*ranked[:half], *(ranked[place] for place in others)]


def _prediction(space: SearchSpace, observations: Sequence[Observation]) -> Callable[[Tensor], Tensor]:
    """Posterior mean of old results; a loss weight that they never varied has no part in it."""
    levels = dict(space.weights)
    for name in levels:
        told = {observation.point.weights[name] for observation in observations}
        levels[name] = levels[name] if len(told) > 1 else tuple(told)
    # Encoded points of the whole space will do: a weight of a single level is not looked at.
    return Proposer(SearchSpace(space.layers, space.slots, levels)).model(_informative(observations)).mean
