"""How much a design is worth trying: the log of the mixture's expected improvement."""

from __future__ import annotations

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import _log_ei_helper
from torch import Tensor

from darec_search.samplers.surrogate import StructuredMixture


class MixtureLogEI(AcquisitionFunction):
    """log Σ_c w_c EI_c(x), EI_c of mixture component c (Ament et al. 2023 for the stable logarithm).

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
        means, variances = self._mixture.marginals(x)
        sigma = variances.sqrt()
        log_ei = _log_ei_helper((means - self.incumbent) / sigma) + sigma.log()
        return torch.logsumexp(self._mixture.weights.log()[:, None] + log_ei, 0)
