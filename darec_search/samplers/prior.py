"""Warm start: the surrogates of old studies as prior mean, believed in as far as they predict the new results.

The new objective is taken as y = Σ_p a_p m_p(x) + f(x): m_p is the posterior mean of old study p, standardised over
uniformly drawn designs, f a Gaussian process as without a warm start, and a_p ~ N(s_p, s_p²/4). Half of the bank has
s = 0 and is the bank of a cold start; in the other half Σ_p s_p = ρ is spread evenly over (0, 1), the correlation of a
related problem, and f has what it leaves of the variance, 1 - ρ². Their marginal likelihoods weigh them: an old study
that predicts nothing ends with the weight of its half of the bank, which is next to none.

Notation: P old studies, M bank entries, B kernels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from darec_search.samplers.kernels import StructuredKernels
from darec_search.space import SearchSpace

_DRAWN = 1000
"""Designs over which an old study's predictions are standardised."""
_NEGLIGIBLE = 1e-9
"""Spread of predictions, relative to their size, below which an old study says nothing."""


class PriorMeans:
    """What P old studies predict for the designs of a space: mean 0, mean square 1 over uniformly drawn designs.

    Args:
        space: the designs.
        predictions: one function per old study, [m, D] encoded points to [m] values in any unit. Those that are
            constant are left out.
    """

    def __init__(self, space: SearchSpace, predictions: Sequence[Callable[[Tensor], Tensor]]) -> None:
        rng = np.random.default_rng(0)
        drawn = torch.from_numpy(np.stack([space.encode(space.sample(rng)) for _ in range(_DRAWN)]))
        self._standardised: list[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]] = []
        self._latest: deque[tuple[Tensor, Tensor]] = deque(maxlen=2)
        """Answers for the last two tensors: one acquisition value asks for the same designs several times."""
        for predict in predictions:
            values = predict(drawn)
            mean, spread = values.mean(), values.std(correction=0)
            if spread > _NEGLIGIBLE * values.abs().max():
                self._standardised.append((predict, mean, spread))

    def __len__(self) -> int:
        return len(self._standardised)

    def __call__(self, x: Tensor) -> Tensor:
        """[m, P] predictions at encoded points [m, D]."""
        for known, answer in self._latest:
            if known is x:
                return answer
        answer = torch.stack([(predict(x) - mean) / spread for predict, mean, spread in self._standardised], dim=1)
        self._latest.append((x, answer))
        return answer

    def extend(self, weightings: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A bank for the kernels `WithPriors`: every entry of a cold start, and the same once more with a prior mean.

        Args:
            weightings: [M, B] of the cold start.
            noise: [M] noise ratios.
            generator: fixes the draw.

        Returns:
            weightings [2M, B + P], noise [2M], slopes s [2M, P].
        """
        size, count = len(noise), len(self)
        strata = torch.randperm(size, generator=generator)
        rho = (strata + torch.rand(size, generator=generator, dtype=torch.float64)) / size
        gammas = torch.randn(size, count, generator=generator, dtype=torch.float64) ** 2  # ∝ Gamma(½)
        slopes = rho[:, None] * gammas / gammas.sum(1, keepdim=True)
        cold = torch.cat([weightings, torch.zeros_like(slopes)], dim=1)
        warm = torch.cat([(1 - rho[:, None] ** 2) * weightings, slopes**2 / 4], dim=1)
        return torch.cat([cold, warm]), noise.repeat(2), torch.cat([torch.zeros_like(slopes), slopes])


class WithPriors:
    """The components of a space, and m_p(x) m_p(x') of every old study.

    Args:
        kernels: the components of the space.
        priors: the old studies' predictions.
    """

    def __init__(self, kernels: StructuredKernels, priors: PriorMeans) -> None:
        self._kernels, self._priors = kernels, priors

    def gram(self, left_nd: Tensor, right_md: Tensor) -> Tensor:
        """Every component between two sets of encoded points: [B + P, n, m], float64."""
        left, right = self._priors(left_nd).T, self._priors(right_md).T
        return torch.cat([self._kernels.gram(left_nd, right_md), left[:, :, None] * right[:, None]])

    def diagonal(self, points_nd: Tensor) -> Tensor:
        """k(x, x) of every component: [B + P, n]."""
        return torch.cat([self._kernels.diagonal(points_nd), self._priors(points_nd).T ** 2])
