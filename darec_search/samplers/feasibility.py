"""Which designs end well: failures teach that a region cannot be run, not that its value is bad.

The chance that a design gives a value is σ(g(x)), g a Gaussian process over the structured kernels: its prior mean
believes in designs, its amplitude and its kernel are weighed by evidence, together with a model in which all designs
fail equally often, so that failures without a pattern move nothing. Posterior and evidence by Laplace's approximation
(Rasmussen & Williams 2006, Algorithms 3.1 and 3.2). The acquisition is log EI + log P(ends well), constrained expected
improvement (Gardner et al. 2014), and a design that is more likely to fail than not comes after all others (a chance
constraint, Gelbart, Snoek, Adams 2014): where little is left to gain elsewhere, EI alone would go on paying for it.

Notation: n designs with an outcome, B kernels, t in {-1, +1} (+1 gave a value).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from darec_search.samplers.kernels import StructuredKernels

_PRIOR_MEAN = 2.0
"""Log-odds: a design ends well with 0.88 before anything is known."""
_LEVEL_VARIANCE = 4.0
"""Of the log-odds that all designs share."""
_AMPLITUDES = (4.0, 16.0, 64.0)
_USED_AT_MOST = 400
"""Outcomes that are learned from, failures first; the fit is cubic in them."""
_NEWTON_STEPS = 30
_LIKELY_TO_FAIL = 1e4
"""Larger than log EI ever differs."""


class Feasibility:
    """log P(design ends well).

    Args:
        kernels: the components of the space.
        good: [n₊, D] encoded designs that gave a value.
        bad: [n₋, D] encoded designs that failed by their own fault, at least one.
    """

    def __init__(self, kernels: StructuredKernels, good: Tensor, bad: Tensor) -> None:
        self._kernels = kernels
        bad = bad[-_USED_AT_MOST // 2 :]
        good = good[-(_USED_AT_MOST - len(bad)) :]
        self._x = torch.cat([good, bad])
        t = torch.cat([torch.ones(len(good)), -torch.ones(len(bad))]).double()
        gram = kernels.gram(self._x, self._x)
        fits = [_Fit.of(_covariance(gram, *setting), t) for setting in self._settings()]
        evidence = torch.stack([fit.evidence for fit in fits])
        kept = [i for i in range(len(fits)) if evidence[i] > evidence.max() - 5.0]
        self._fits = [fits[i] for i in kept]
        self._kept = [self._settings()[i] for i in kept]
        self._weights = torch.softmax(evidence[kept], 0)

    def log_probability(self, x: Tensor) -> Tensor:
        """[m] log P(ends well) of encoded designs [m, D]."""
        cross, own = self._kernels.gram(self._x, x), self._kernels.diagonal(x)
        chances = [
            fit.probability(_covariance(cross, *setting), _covariance(own, *setting))
            for fit, setting in zip(self._fits, self._kept, strict=True)
        ]
        return (self._weights @ torch.stack(chances)).clamp_min(1e-6).log()

    def log_weight(self, x: Tensor) -> Tensor:
        """[m] what is added to log EI: log P, and far less where failure is the likelier end."""
        log_probability = self.log_probability(x)
        return torch.where(log_probability < math.log(0.5), log_probability - _LIKELY_TO_FAIL, log_probability)

    def _settings(self) -> list[tuple[int, float]]:
        """Kernel and amplitude of every model; amplitude 0 is that of failures without a pattern."""
        each = [(kernel, amplitude) for kernel in range(len(self._kernels)) for amplitude in _AMPLITUDES]
        return [(0, 0.0), *each]


class _Fit:
    """Laplace's approximation of one model's posterior."""

    def __init__(self, gradient: Tensor, root: Tensor, cholesky: Tensor, evidence: Tensor) -> None:
        self._gradient, self._root, self._cholesky = gradient, root, cholesky
        self.evidence = evidence

    @classmethod
    def of(cls, covariance: Tensor, t: Tensor) -> _Fit:
        """Newton's method for the mode of p(g | t), g without its prior mean."""
        g, identity = torch.zeros_like(t), torch.eye(len(t), dtype=torch.float64)
        for _ in range(_NEWTON_STEPS):
            chance = torch.sigmoid(g + _PRIOR_MEAN)
            gradient, curvature = (t + 1) / 2 - chance, chance * (1 - chance)
            root = curvature.sqrt()
            cholesky = torch.linalg.cholesky(identity + root[:, None] * covariance * root)
            b = curvature * g + gradient
            a = b - root * torch.cholesky_solve((root * (covariance @ b))[:, None], cholesky)[:, 0]
            previous, g = g, covariance @ a
            if (g - previous).abs().max() < 1e-8:
                break
        likelihood = logsigmoid(t * (g + _PRIOR_MEAN)).sum()
        evidence = likelihood - 0.5 * a @ g - cholesky.diagonal().log().sum()
        return cls((t + 1) / 2 - torch.sigmoid(g + _PRIOR_MEAN), root, cholesky, evidence)

    def probability(self, cross: Tensor, own: Tensor) -> Tensor:
        """[m] chances from the covariances [n, m] with the training designs and [m] of each with itself."""
        mean = _PRIOR_MEAN + cross.T @ self._gradient
        projected = torch.linalg.solve_triangular(self._cholesky, self._root[:, None] * cross, upper=False)
        variance = (own - projected.square().sum(0)).clamp_min(0.0)
        # The logistic averaged over a normal (MacKay 1992).
        return torch.sigmoid(mean / (1 + torch.pi * variance / 8).sqrt())


def _covariance(parts: Tensor, kernel: int, amplitude: float) -> Tensor:
    return _LEVEL_VARIANCE + amplitude * parts[kernel]
