"""From results to the next design: surrogate, acquisition and optimiser in one pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from darec_search.samplers.acquisition import MixtureLogEI
from darec_search.samplers.base import LEVEL, Observation, Recommendation
from darec_search.samplers.feasibility import Feasibility
from darec_search.samplers.kernels import StructuredKernels, bank
from darec_search.samplers.local_search import Acquisition
from darec_search.samplers.prior import PriorMeans, WithPriors
from darec_search.samplers.prob_reparam_optimizer import ProbabilisticReparameterization
from darec_search.samplers.surrogate import Data, Kernels, StructuredMixture, Trend
from darec_search.space import Point, SearchSpace

_BANK_SEED = 2024
_CONDITIONED_AT_MOST = 500
"""Observations behind the acquisition, whose every value costs their square; recommendations use all."""
_KEPT = 12
"""Bank entries that make the mixture."""
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

    def model(self, observations: Sequence[Observation], keep: int = _KEPT) -> StructuredMixture:
        """The surrogate of at least one observation, of the `keep` best bank entries; the order does not matter."""
        observations = sorted(observations, key=lambda o: (tuple(self.space.encode(o.point)), o.value))
        y = torch.tensor([observation.value for observation in observations], dtype=torch.float64)
        data = Data.of(self.encode([o.point for o in observations]), y, [o.stderr for o in observations])
        return StructuredMixture(self._covariances, data, *self._bank, keep=keep, trend=self._trend)

    def model_for_intervals(self, observations: Sequence[Observation]) -> StructuredMixture:
        """The surrogate whose intervals hold what they say: of all bank entries, unless there are many observations."""
        few = len(observations) <= _WHOLE_BANK_UP_TO
        return self.model(observations, len(self._bank[1]) if few else _KEPT)

    def propose(
        self,
        observations: Sequence[Observation],
        failures: Sequence[Point],
        pending: Sequence[Point],
        rng: np.random.Generator,
        infeasible: Sequence[Point] = (),
    ) -> Point | None:
        """The design with the best acquisition value that has no result and is not under way.

        Args:
            observations: at least one.
            failures: designs without a value, not proposed again.
            pending: designs under way.
            rng: for the optimiser.
            infeasible: those of the failures that were the design's own fault; designs like them are avoided.

        Returns:
            None when no such design is left or, without the polish, was drawn.
        """
        model = self.model(_informative(observations))
        told = torch.unique(self.encode([observation.point for observation in observations]), dim=0)
        centres = self._centres(told, model.mean(told), rng)
        model.pending(self.encode(list(dict.fromkeys(pending))))
        values: Acquisition = MixtureLogEI(model, max(observation.value for observation in observations)).values
        if infeasible:
            values = self._constrained(values, told, self.encode(infeasible))
        exclude = self.encode([o.point for o in observations] + [*failures, *pending])
        if not self._polish:
            drawn = self.optimizer.draw(values, rng, centres, exclude)
            return None if drawn is None else self.space.decode(drawn.numpy())
        candidates, _ = self.optimizer.optimize(values, rng, centres, exclude)
        return self.space.decode(candidates[0].numpy()) if len(candidates) else None

    def _constrained(self, values: Acquisition, good: Tensor, bad: Tensor) -> Acquisition:
        """Log EI with the chance that a design ends well; the order of the failures does not matter."""
        feasibility = Feasibility(self._kernels, good, torch.unique(bad, dim=0))
        return lambda x: values(x) + feasibility.log_weight(x)

    def recommend(self, observations: Sequence[Observation], count: int) -> list[Recommendation]:
        """The evaluated designs with the highest posterior means, with credible intervals; best first."""
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
