"""The paper's own search: Algorithm 1, "BO with Reparameterization" (Section 2.3.3; Daulton et al. 2022).

    1  D_0 ← ∅, GP_0 ← GP(0, k)
    2  for n = 1 … N
    3      θ_n ← argmax_θ E_{z ~ p(z|θ)}[α(z)]
    4      z_n ~ p(z | θ_n)
    5      y_n ← f(z_n); D_n ← D_{n-1} ∪ {(z_n, y_n)}; update GP_n given D_n

Each bit of z is Bernoulli, each loss weight's level categorical. The GP is BoTorch's `SingleTaskGP`, α its expected
improvement over the best observed MRR, θ_n the best of many starts of Adam on score-function gradients
(`prob_reparam_optimizer.py`). With D_0 empty α is the same everywhere, so the first design is uniform.

Added to the letter: a design that has a result or is under way is drawn again; designs under way enter the GP at their
posterior mean; α is divided by a constant, which moves neither θ_n nor the direction of a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from darec_search.samplers.acquisition import Surrogate, log_expected_improvement
from darec_search.samplers.base import Observation, Options, Sampler, unseen
from darec_search.samplers.gaussian_process import FittedGP
from darec_search.samplers.local_search import Acquisition
from darec_search.samplers.prob_reparam_optimizer import ProbabilisticReparameterization
from darec_search.samplers.proposer import Proposer
from darec_search.space import Point, SearchSpace
from trainer.threads import single_thread

_CENTRED = 4
"""Starts of θ around the best designs; the others are around random ones."""


class ProbReparamOptions(Options):
    """Options of `prob_reparam`."""

    start: Annotated[int, Field(ge=1)] = Field(1, description="Random designs before the model takes over.")
    kernel: Literal["rbf", "structured"] = Field(
        "rbf", description="`rbf`: BoTorch's SingleTaskGP. `structured`: the mixture of `ax_bayes`."
    )
    acquisition: Literal["ei", "log_ei"] = Field(
        "ei", description="`ei`: expected improvement. `log_ei`: its logarithm, as in `ax_bayes`."
    )
    starts: Annotated[int, Field(ge=1)] = Field(16, description="Values of θ that Adam starts from.")
    samples: Annotated[int, Field(ge=2)] = Field(64, description="Monte-Carlo samples of each start and step.")
    steps: Annotated[int, Field(ge=1)] = Field(60, description="Steps of Adam.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.3, description="Of Adam, on the log-odds.")
    fit_steps: Annotated[int, Field(ge=1)] = Field(500, description="L-BFGS steps of the GP's fit, at most.")


class ProbReparamSampler(Sampler):
    """Algorithm 1. Recommends the best mean value."""

    Options = ProbReparamOptions
    options: ProbReparamOptions

    def __init__(self, space: SearchSpace, seed: int, options: ProbReparamOptions) -> None:
        super().__init__(space, seed, options)
        self._optimizer = ProbabilisticReparameterization(
            space, options.starts, options.samples, options.steps, options.learning_rate
        )
        self._structured = Proposer(space)

    def _propose(self, pending: list[Point], rng: np.random.Generator) -> Point:
        seen = self.history.points()
        taken = list(dict.fromkeys([*seen, *pending]))
        if self.history.observations and self.options.start <= len(taken) < self.space.size:
            with single_thread():
                acquisition = self._acquisition(list(dict.fromkeys(pending)), rng)
                drawn = self._optimizer.draw(acquisition, rng, self._encode(self._best()), self._encode(taken))
            if drawn is not None:
                return self.space.decode(drawn.numpy())
        return unseen(self.space, rng, seen, pending)

    @property
    def learns_from_related(self) -> bool:
        return self.options.kernel == "structured"

    def _learn_from(self, studies: Sequence[Sequence[Observation]]) -> None:
        if not self.learns_from_related:
            super()._learn_from(studies)
        with single_thread():
            self._structured.learn_from(studies)

    def surrogate(self, rng: np.random.Generator) -> Surrogate:
        """GP_n, given at least one observation."""
        observations = self.history.observations
        if self.options.kernel == "structured":
            return self._structured.model(observations)
        y = torch.tensor([observation.value for observation in observations], dtype=torch.float64)
        x = self._encode([observation.point for observation in observations])
        return FittedGP(self._optimizer.levels, x, y, int(rng.integers(2**31)), self.options.fit_steps)

    def _acquisition(self, pending: Sequence[Point], rng: np.random.Generator) -> Acquisition:
        surrogate = self.surrogate(rng)
        surrogate.pending(self._encode(pending))
        incumbent = max(observation.value for observation in self.history.observations)

        def log_ei(x: Tensor) -> Tensor:
            return log_expected_improvement(surrogate, x, incumbent)

        if self.options.acquisition == "log_ei":
            return log_ei
        anywhere = [self.space.sample(rng) for _ in range(64)] + self._best()
        scale = log_ei(self._encode(anywhere)).max()
        return lambda x: torch.exp(log_ei(x) - scale)

    def _best(self) -> list[Point]:
        means = self.history.means()
        return sorted(means, key=means.__getitem__, reverse=True)[:_CENTRED]

    def _encode(self, points: Sequence[Point]) -> Tensor:
        return self._structured.encode(points)
