"""The paper's surrogate: BoTorch's `SingleTaskGP`, fitted by BoTorch.

    f ~ GP(c, k),  k(x, x') = exp(-½ Σ_j (x_j - x'_j)² / ℓ_j²),  y = f(x) + ε,  ε ~ N(0, σ²),  y standardised

The constant c, the length scales ℓ and σ maximise the posterior density under BoTorch's priors (Hvarfner, Hellsten,
Nardi 2024, "Vanilla Bayesian Optimization Performs Great in High Dimensions"). A bit is a coordinate in {0, 1}, a loss
weight's level one in [0, 1], levels in equal steps.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import gpytorch
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

_CHUNK = 512
"""Points whose joint covariance is computed at a time."""


class FittedGP:
    """A Gaussian process over encoded points.

    Args:
        levels: number of values of each of the D parameters.
        x: [n, D] encoded points, n at least 1.
        y: [n] values.
        seed: of the fit, which starts again from random hyperparameters when it fails.
        fit_steps: L-BFGS steps of the fit, at most.
    """

    def __init__(self, levels: tuple[int, ...], x: Tensor, y: Tensor, seed: int, fit_steps: int = 500) -> None:
        self.weights = torch.ones(1, dtype=torch.float64)
        self._scale = torch.tensor([max(count - 1, 1) for count in levels], dtype=torch.float64)
        self._mean = y.mean()
        spread = y.std() if len(y) > 1 else torch.zeros_like(self._mean)
        self._spread = spread if spread > 1e-12 * max(1.0, float(y.abs().max())) else torch.ones_like(spread)
        with _exact_and_quiet():
            standardised = ((y - self._mean) / self._spread)[:, None]
            self.model: Any = SingleTaskGP(x / self._scale, standardised, outcome_transform=None)
            _fit(self.model, seed, fit_steps)
        self.model.eval()

    def pending(self, x: Tensor) -> None:
        """Take designs under way into account: each is believed to end at its posterior mean.

        The mean does not move when the process is told its own mean, so only the variances shrink.

        Args:
            x: [p, D] encoded points, each once.
        """
        if not len(x):
            return
        with _exact_and_quiet(), torch.no_grad():
            believed = self.model(x / self._scale).mean
        inputs = torch.cat([self.model.train_inputs[0], x / self._scale])
        self.model.set_train_data(inputs, torch.cat([self.model.train_targets, believed]), strict=False)

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of f at each point, in the objective's units.

        Args:
            x: [m, D] encoded points.

        Returns:
            means [1, m] and variances [1, m].
        """
        with _exact_and_quiet(), torch.no_grad():
            posteriors = [self.model(chunk) for chunk in (x / self._scale).split(_CHUNK)]
            mean = torch.cat([posterior.mean for posterior in posteriors])
            variance = torch.cat([posterior.variance for posterior in posteriors])
        return (self._mean + self._spread * mean)[None], (self._spread**2 * variance)[None]


def _fit(model: SingleTaskGP, seed: int, steps: int) -> None:
    options = {"options": {"maxiter": steps}}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), contextlib.suppress(ModelFittingError):
        # Where no fit succeeds, the hyperparameters stay at the modes of their priors.
        torch.manual_seed(seed)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs=options)


@contextlib.contextmanager
def _exact_and_quiet() -> Iterator[None]:
    """Cholesky factors at every size; no advice about numbers that nobody can change."""
    with gpytorch.settings.fast_computations(False, False, False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
