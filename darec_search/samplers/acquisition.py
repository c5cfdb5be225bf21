"""How much a design is worth trying: the log of the expected improvement."""

from __future__ import annotations

from typing import Protocol

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import _log_ei_helper
from torch import Tensor

from darec_search.samplers.surrogate import StructuredMixture


class Surrogate(Protocol):
    """A mixture of C Gaussians at every point; a plain Gaussian process is one with C = 1."""

    weights: Tensor

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means [C, m] and variances [C, m] at encoded points [m, D]."""

    def pending(self, x: Tensor) -> None:
        """Take designs [p, D] under way into account."""


def log_expected_improvement(surrogate: Surrogate, x: Tensor, incumbent: float) -> Tensor:
    """Log of Σ_c w_c EI_c(x), EI_c = σ_c (u Φ(u) + φ(u)), u = (μ_c - incumbent) / σ_c.

    Jones, Schonlau, Welch (1998) for EI; Ament et al. (2023) for its stable logarithm.

    Args:
        surrogate: gives μ, σ² and the weights w.
        x: [m, D] encoded points.
        incumbent: value to improve on.

    Returns:
        [m] values.
    """
    means, variances = surrogate.marginals(x)
    return log_improvement(means, variances.sqrt(), surrogate.weights, incumbent)


def log_expected_gain(model: StructuredMixture, x: Tensor, incumbent: float, fidelity: int) -> Tensor:
    """Log of the expected improvement of the believed value at the target by one evaluation at a fidelity.

    As `log_expected_improvement`, with the standard deviation by which the posterior mean will move in place of that of
    f: the knowledge gradient with a fixed incumbent (Frazier, Powell, Dayanik 2009).

    Args:
        model: the surrogate.
        x: [m, D] encoded points.
        incumbent: value to improve on.
        fidelity: of the evaluation.

    Returns:
        [m] values.
    """
    moves = model.learnable(x, fidelity).clamp_min(1e-20).sqrt()
    return log_improvement(model.marginals(x)[0], moves, model.weights, incumbent)


def log_improvement(means: Tensor, sigma: Tensor, weights: Tensor, incumbent: float) -> Tensor:
    """Log of Σ_c w_c EI_c from means [C, m], standard deviations [C, m] and weights [C]: [m]."""
    log_ei = _log_ei_helper((means - incumbent) / sigma) + sigma.log()
    return torch.logsumexp(weights.log()[:, None] + log_ei, 0)


class MixtureLogEI(AcquisitionFunction):
    """`log_expected_improvement` as BoTorch's kind of acquisition function.

    Args:
        model: the surrogate; call its `pending` first for designs under way.
        incumbent: value to improve on. The best noisy observation explores more than the best posterior mean.
    """

    def __init__(self, model: StructuredMixture, incumbent: float) -> None:
        super().__init__(model=model)
        self._mixture = model
        self.incumbent = incumbent

    def forward(self, X: Tensor) -> Tensor:
        """[b] values of [b, 1, D] encoded points."""
        return self.values(X[..., 0, :])

    def values(self, x: Tensor) -> Tensor:
        """[m] values of [m, D] encoded points."""
        return log_expected_improvement(self._mixture, x, self.incumbent)
