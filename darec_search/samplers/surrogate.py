"""The model of the objective: a mixture of Gaussian processes over a bank of structured kernels.

Where the results speak for them, tables over few bits join it (`tables.py`).

Notation: n observations y (standardised), M bank entries, C kept components, B kernels.
K = 1 + Σ_b w_b k_b + ν diag(r): a constant, a weighting w and a noise ratio ν from the bank; r is 1, or a known
standard error's square relative to the others'. With an inverse-gamma(1, 1) amplitude σ² integrated out (Rasmussen &
Williams 2006, ch. 2; the marginal is a Student t), an entry's score is

    log p(y | w, ν) = -(n+2)/2 · log(yᵀK⁻¹y + 2) - ½ log|K| + const

and its amplitude is (yᵀK⁻¹y + 2) / (n + 2). No hyperparameter is fitted by gradients: with few noisy points the average
over a bank is steadier than any maximum.

After a warm start y above is what the entry's prior mean leaves of the observations (`prior.py`). With observations of
cheaper fidelities K has their links too (`fidelity.py`); f is the objective at the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from linear_operator import to_linear_operator
from scipy import special
from torch import Tensor

from darec_search.samplers.fidelity import Links

_NEGLIGIBLE = 0.01
"""Weight, relative to the best entry's, below which an entry is left out."""
_SCORED_AT_MOST = 200
"""Observations on which the bank is scored: scoring is cubic in them and M-fold."""


class Kernels(Protocol):
    """B covariances with mean diagonal 1, such as `StructuredKernels`."""

    def gram(self, left_nd: Tensor, right_md: Tensor) -> Tensor:
        """[B, n, m] between two sets of encoded points."""

    def diagonal(self, points_nd: Tensor) -> Tensor:
        """[B, n] of each point with itself."""


@dataclass(frozen=True)
class Trend:
    """Prior mean of the standardised objective: features(x) · slopes of a bank entry.

    Args:
        features: [m, D] encoded points to [m, P].
        slopes: [M, P].
    """

    features: Callable[[Tensor], Tensor]
    slopes: Tensor

    def of(self, entries: Tensor) -> Trend:
        """That of some bank entries."""
        return Trend(self.features, self.slopes[entries])

    def __call__(self, x: Tensor) -> Tensor:
        """[M, m] prior means at encoded points [m, D]."""
        return self.slopes @ self.features(x).T


@dataclass(frozen=True)
class Data:
    """Observations in encoded form.

    Args:
        x: [n, D] encoded points.
        y: [n] values, larger is better.
        noise_scale: [n] noise variance of each relative to the typical one.
        fidelity: [n] of each, 0 the target; None where all are of the target.
    """

    x: Tensor
    y: Tensor
    noise_scale: Tensor
    fidelity: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, y: Tensor, stderr: Sequence[float | None], fidelity: Tensor | None = None) -> Data:
        """Build it from standard errors, None where unknown; their median is the typical one."""
        known = torch.tensor([s if s is not None and s > 0 else float("nan") for s in stderr], dtype=torch.float64)
        relative = (known / known.nanmedian()) ** 2
        return cls(x, y, relative.nan_to_num(1.0).clamp(0.05, 20.0), fidelity)


class StructuredMixture(Model):
    """A BoTorch model whose posterior has one Gaussian per kept bank entry, with weights.

    Args:
        kernels: the components of the space.
        data: observations, at least one.
        weightings: [M, B] bank of component weightings.
        noise: [M] noise ratio of each.
        keep: entries kept, best first, at most M.
        trend: the entries' prior means; none by default.
        links: of the entries' fidelities, where the data are of several.
        log_evidence: [M] of the entries, where it is known; else their marginal likelihoods.
    """

    def __init__(
        self,
        kernels: Kernels,
        data: Data,
        weightings: Tensor,
        noise: Tensor,
        keep: int = 12,
        trend: Trend | None = None,
        links: Links | None = None,
        log_evidence: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._kernels = kernels
        self._mean = data.y.mean()
        spread = data.y.std(correction=0)
        self._spread = spread if spread > 1e-12 * max(1.0, float(data.y.abs().max())) else torch.ones_like(spread)
        scores = log_evidence
        if scores is None:
            scores = _scores(_Prior(kernels, weightings, noise, trend, links), self.standardised(data))
        self.log_evidence = float(torch.logsumexp(scores, 0)) - math.log(len(scores))
        """Of the bank, every entry of which is as likely."""
        kept = torch.sort(scores, descending=True, stable=True).indices[:keep]
        # With many results a few entries explain nearly everything; the others would only cost time.
        kept = kept[scores[kept] >= scores[kept[0]] + math.log(_NEGLIGIBLE)]
        self.kept = kept
        """Places in the bank of the entries that make the mixture, best first."""
        self.weights = torch.softmax(scores[kept], 0)
        self.weightings, self.noise = weightings[kept], noise[kept]
        self.trend = trend.of(kept) if trend else None
        self._links = links.of(kept) if links else None
        self._prior = _Prior(kernels, self.weightings, self.noise, self.trend, self._links)
        standard = Data(data.x, self._standardise(data.y), data.noise_scale, data.fidelity)
        self._condition(standard, self._prior.residuals(standard))

    def _condition(self, data: Data, y: Tensor) -> None:
        """Observations and what they leave to explain: [n], or [C, n] where the entries differ in it."""
        self._data, self._x = data, data.x
        self._cholesky = self._prior.cholesky(data)
        self._alpha = torch.cholesky_solve(y[..., None].expand(len(self.weights), -1, 1), self._cholesky)[..., 0]
        self._amplitude = ((self._alpha * y).sum(1) + 2) / (len(self._x) + 2)
        identity = torch.eye(len(self._x), dtype=torch.float64)
        self._inverse = torch.linalg.solve_triangular(self._cholesky, identity, upper=False)

    def _standardise(self, y: Tensor) -> Tensor:
        return (y - self._mean) / self._spread

    @staticmethod
    def standardised(data: Data) -> Data:
        """What the bank is scored on: all observations, or some of many, with mean 0 and variance 1."""
        keep = torch.linspace(0, len(data.y) - 1, min(len(data.y), _SCORED_AT_MOST)).round().long()
        y = data.y[keep]
        spread = y.std(correction=0)
        y = (y - y.mean()) / (spread if spread > 0 else 1.0)
        fidelity = None if data.fidelity is None else data.fidelity[keep]
        return Data(data.x[keep], y, data.noise_scale[keep], fidelity)

    @property
    def points(self) -> Tensor:
        """[n, D] encoded points of the observations, and of the designs under way."""
        return self._x

    @property
    def num_outputs(self) -> int:
        """One objective."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """No batch of models: the mixture is inside the posterior."""
        return torch.Size([])

    def pending(self, x: Tensor, fidelity: Tensor | None = None) -> None:
        """Take designs under way into account: each is believed to end at its posterior mean.

        A Gaussian process's mean does not move when it is told its own mean, so only the variances shrink.

        Args:
            x: [p, D] encoded points.
            fidelity: [p] of each, where the data have fidelities.
        """
        if not len(x):
            return
        count, told = len(x), self._data
        alpha, amplitude = self._alpha, self._amplitude
        noise_scale = torch.cat([told.noise_scale, torch.ones(count, dtype=torch.float64)])
        fidelities = None
        if told.fidelity is not None:
            fidelities = torch.cat([told.fidelity, torch.zeros(count).long() if fidelity is None else fidelity])
        nothing = torch.zeros(len(noise_scale), dtype=torch.float64)
        self._condition(Data(torch.cat([self._x, x]), nothing, noise_scale, fidelities), nothing)
        self._alpha = torch.cat([alpha, torch.zeros(len(alpha), count, dtype=torch.float64)], dim=1)
        self._amplitude = amplitude

    def marginals(self, x: Tensor, fidelity: int = 0) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of f at each point, per component.

        Args:
            x: [m, D] encoded points.
            fidelity: the target, or a cheaper one that the data have.

        Returns:
            means [C, m] and variances [C, m], in the objective's units.
        """
        means, projected = self.projected(x, fidelity)
        variance = self.prior_variance(x, fidelity) - projected.square().sum(1)
        return means, self._spread**2 * (variance.clamp_min(1e-10) * self._amplitude[:, None])

    def projected(self, x: Tensor, fidelity: int = 0) -> tuple[Tensor, Tensor]:
        """Posterior mean at each point, and what the observations explain of the prior.

        Args:
            x: [m, D] encoded points.
            fidelity: the target, or a cheaper one that the data have.

        Returns:
            means [C, m] in the objective's units; V [C, n, m], which makes the posterior covariance of any two points,
            in units of `unit`, their prior `covariance` minus the product of their columns.
        """
        cross = self._cross(x, fidelity)
        mean = torch.einsum("cnm,cn->cm", cross, self._alpha)
        if self.trend:
            mean = mean + self._prior.expected(x, fidelity)
        return self._mean + self._spread * mean, self._inverse @ cross

    def prior_variance(self, x: Tensor, fidelity: int = 0) -> Tensor:
        """[C, m] of f at each point and a fidelity, in units of `unit`."""
        return self._prior.variance(x, fidelity)

    def covariance(self, left: Tensor, fidelity: int, right: Tensor, other: int) -> Tensor:
        """[C, k, m] prior covariance of f at points [k, D] and a fidelity with f at points [m, D] and another one."""
        covariance = _combine(self._kernels.gram(left, right), self.weightings)
        if self._links is None:
            return covariance
        return self._links.toward(covariance, torch.full((len(left),), fidelity), other)

    def link(self, fidelity: int) -> Tensor | float:
        """[C, 1] covariance of f(x) at a fidelity with f(x) at the target, over the latter's variance."""
        return 1.0 if self._links is None else self._links.signal[:, fidelity, 0, None]

    def noise_variance(self, fidelity: int = 0) -> Tensor:
        """[C] of a new observation, in units of `unit`."""
        return self.noise if self._links is None else self.noise * self._links.noise[:, fidelity]

    @property
    def unit(self) -> Tensor:
        """[C] the objective's squared units in which components count variances."""
        return self._spread**2 * self._amplitude

    def at_target(self, x: Tensor, y: Tensor, fidelity: int) -> Tensor:
        """Noisy observations [m] at a fidelity as they would be at the target: its mean, and their residuals."""
        if fidelity == 0 or self._links is None:
            return y
        scale = self._links.signal[:, fidelity, fidelity, None].sqrt()
        residuals = (y - self.marginals(x, fidelity)[0]) / scale
        return self.weights @ (self.marginals(x)[0] + residuals)

    def learnable(self, x: Tensor, fidelity: int) -> Tensor:
        """By how much a noisy observation at a fidelity lowers the variance of f at the target there.

        Args:
            x: [m, D] encoded points.
            fidelity: one that the data have, or the target.

        Returns:
            [C, m] falls of the variances, in the objective's units.
        """
        target, seen = self._inverse @ self._cross(x), self._inverse @ self._cross(x, fidelity)
        shared = self.prior_variance(x) * self.link(fidelity) - (target * seen).sum(1)
        variance = (self.prior_variance(x, fidelity) - seen.square().sum(1)).clamp_min(1e-10)
        noise = self.noise_variance(fidelity)
        fall = shared.square() / (variance + noise[:, None]) * self._amplitude[:, None]
        return self._spread**2 * fall

    def _cross(self, x: Tensor, fidelity: int = 0) -> Tensor:
        """[C, n, m] prior covariance of the observations with f at a fidelity."""
        cross = _combine(self._kernels.gram(self._x, x), self.weightings)
        if self._links is None or self._data.fidelity is None:
            return cross
        return self._links.toward(cross, self._data.fidelity, fidelity)

    def mean(self, x: Tensor) -> Tensor:
        """[m] posterior mean of the mixture."""
        # Σ_c w_c Σ_b W_cb k_b α_c, summed over c first: no [C, n, m].
        alpha = self._alpha
        if self._links is not None and self._data.fidelity is not None:
            alpha = alpha * self._links.signal[:, self._data.fidelity, 0]
        parts = torch.einsum("c,cb,cn->bn", self.weights, self.weightings, alpha)
        mean = self.weights @ alpha.sum(1) + torch.einsum("bnm,bn->m", self._kernels.gram(self._x, x), parts)
        if self.trend:
            mean = mean + self.weights @ self.trend(x)
        return self._mean + self._spread * mean

    def interval(self, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Credible interval of f at each point, with equal tails.

        With the amplitude integrated out a component's f(x) is a Student t with n + 2 degrees of freedom, whose
        squared scale is the variance of `marginals` (Rasmussen & Williams 2006, ch. 9.9). Call it before `pending`.

        Args:
            x: [m, D] encoded points.
            level: probability of the interval.

        Returns:
            lower [m] and upper [m] ends.
        """
        return self._quantiles(*self.marginals(x), level)

    def contrasts(self, cross_bnf: Tensor, prior_bf: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
        """Linear functionals of f that are zero for a constant, such as effects: they are Student t too.

        Args:
            cross_bnf: each kernel's covariances of f at the observations with the functionals.
            prior_bf: each kernel's variances of the functionals.
            level: probability of the intervals, which have equal tails.

        Returns:
            means [F], lower [F] and upper [F] ends, in the objective's units.

        Raises:
            ValueError: with a prior mean, whose own effects nobody has given.
        """
        if self.trend:
            raise ValueError("effects are those of a surrogate without a prior mean")
        cross = (self.weightings @ cross_bnf.flatten(1)).reshape(-1, *cross_bnf.shape[1:])
        means = self._spread * torch.einsum("cnf,cn->cf", cross, self._alpha)
        explained = (self._inverse @ cross).square().sum(1)
        variances = (self.weightings @ prior_bf - explained).clamp_min(1e-10) * self._amplitude[:, None]
        return self.weights @ means, *self._quantiles(means, self._spread**2 * variances, level)

    def draws(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """[count, m] joint draws of what trainings of m designs would show, noise included."""
        joint = self.posterior(x[None], observation_noise=True).distribution
        factors = torch.linalg.cholesky(joint.covariance_matrix[0])
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        normal = torch.randn(count, len(x), generator=generator, dtype=torch.float64)
        # With the amplitude integrated out it is a Student t: a normal over the root of a scaled χ².
        freedom = len(self._x) + 2
        squares = torch.randn(count, freedom, generator=generator, dtype=torch.float64).square().mean(1, keepdim=True)
        shifts = torch.stack([factors[entry] @ row for entry, row in zip(chosen, normal, strict=True)])
        return joint.mean[0][chosen] + shifts / squares.sqrt()

    def _quantiles(self, means_cm: Tensor, variances_cm: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Lower [m] and upper [m] ends of the mixture's intervals with equal tails."""
        means, scales = means_cm.numpy(), variances_cm.sqrt().numpy()
        weights, freedom = self.weights.numpy(), len(self._x) + 2

        def quantile(probability: float) -> Tensor:
            # Every component's own quantile lies on one side or the other of the mixture's.
            own = means + scales * special.stdtrit(freedom, probability)
            low, high = own.min(0), own.max(0)
            for _ in range(60):
                middle = (low + high) / 2
                below = weights @ special.stdtr(freedom, (middle - means) / scales) < probability
                low, high = np.where(below, middle, low), np.where(below, high, middle)
            return torch.from_numpy((low + high) / 2)

        return quantile((1 - level) / 2), quantile((1 + level) / 2)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> GPyTorchPosterior:
        """Joint posterior of f per component, BoTorch's interface.

        Args:
            X: [batch…, q, D] encoded points.
            output_indices: there is one output, so this changes nothing.
            observation_noise: add the noise of a new observation.
            posterior_transform: applied to the posterior when given.

        Returns:
            a posterior of shape [batch…, C, q, 1]; `weights` [C] weighs the components.
        """
        *batch, q, size = X.shape
        flat = X.reshape(-1, size)
        means, _ = self.marginals(flat)
        covariance = self._joint(X.reshape(-1, q, size))
        if observation_noise:
            noise = self.noise * self._amplitude * self._spread**2
            covariance = covariance + noise[:, None, None] * torch.eye(q, dtype=torch.float64)
        mean = means.reshape(len(self.weights), -1, q).transpose(0, 1).reshape(*batch, len(self.weights), q)
        covariance = covariance.reshape(*batch, len(self.weights), q, q)
        # Factored when needed, with jitter: a table sees no difference between some designs.
        normal = MultivariateNormal(mean, to_linear_operator(covariance))
        posterior = GPyTorchPosterior(normal)
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def _joint(self, x_bqd: Tensor) -> Tensor:
        """[b, C, q, q] posterior covariance of f, b sets of q points."""
        sets = []
        for x in x_bqd:
            projected = self._inverse @ self._cross(x)
            prior = _combine(self._kernels.gram(x, x), self.weightings)
            covariance = (prior - projected.transpose(-1, -2) @ projected) * self._amplitude[:, None, None]
            sets.append(covariance * self._spread**2)
        return torch.stack(sets)


def _combine(gram_bnm: Tensor, weightings_cb: Tensor) -> Tensor:
    """1 + Σ_b w_b k_b for every weighting: [C, n, m]."""
    return 1 + (weightings_cb @ gram_bnm.flatten(1)).reshape(-1, *gram_bnm.shape[1:])


@dataclass(frozen=True)
class _Prior:
    """What M bank entries believe before any observation; the fields are those of `StructuredMixture`."""

    kernels: Kernels
    weightings: Tensor
    noise: Tensor
    trend: Trend | None
    links: Links | None

    def cholesky(self, data: Data) -> Tensor:
        """Factors [M, n, n] of K. The noise keeps K well conditioned."""
        covariance, noise = _combine(self.kernels.gram(data.x, data.x), self.weightings), self.noise[:, None]
        if self.links is not None and data.fidelity is not None:
            covariance = self.links.among(covariance, data.fidelity)
            noise = noise * self.links.noise[:, data.fidelity]
        covariance.diagonal(dim1=-2, dim2=-1).add_(noise * data.noise_scale)
        return torch.linalg.cholesky(covariance)

    def variance(self, x: Tensor, fidelity: int) -> Tensor:
        """[M, m] of f at each point."""
        variance = 1 + self.weightings @ self.kernels.diagonal(x)
        return variance if self.links is None else self.links.variance(variance, fidelity)

    def expected(self, x: Tensor, fidelity: int) -> Tensor | float:
        """[M, m] mean of f at each point; 0 without a trend."""
        if self.trend is None:
            return 0.0
        mean = self.trend(x)
        return mean if self.links is None else mean * self.links.signal[:, fidelity, 0, None]

    def residuals(self, data: Data) -> Tensor:
        """What the prior means leave of y [n]: [M, n], or y itself without any."""
        if self.trend is None:
            return data.y
        mean = self.trend(data.x)
        if self.links is not None and data.fidelity is not None:
            mean = mean * self.links.signal[:, data.fidelity, 0]
        return data.y - mean


def _scores(prior: _Prior, data: Data) -> Tensor:
    """[M] log marginal likelihoods."""
    return log_marginal(prior.cholesky(data), prior.residuals(data))


def log_marginal(factor_mnn: Tensor, y: Tensor) -> Tensor:
    """[M] log p(y), up to a constant, with the amplitude integrated out.

    Args:
        factor_mnn: Cholesky factors of K.
        y: [n], or [M, n].
    """
    residuals = y[..., None].expand(len(factor_mnn), -1, 1)
    fit = torch.linalg.solve_triangular(factor_mnn, residuals, upper=False).square().sum((1, 2))
    half_log_det = factor_mnn.diagonal(dim1=-2, dim2=-1).log().sum(1)
    return -(residuals.shape[1] + 2) / 2 * torch.log(fit + 2) - half_log_det
