"""Probabilistic reparameterisation: optimise an acquisition over discrete designs by gradients of an expectation.

Daulton, Wan, Eriksson, Balandat, Osborne, Bakshy (2022), "Bayesian Optimization over Discrete and Mixed Spaces via
Probabilistic Reparameterization"; Algorithm 1 of the DARec paper. A design z is drawn from p(z | θ): a Bernoulli for
each bit, a categorical for each loss weight's level. The probabilistic objective

    PO(θ) = E_{z ~ p(z|θ)}[α(z)],      ∇PO(θ) = E[α(z) ∇ log p(z|θ)]

is smooth in θ, its maxima are point masses on maxima of α, and N samples estimate both without bias.

Two samplers use it: `prob_reparam` samples its design from the best θ (`draw`, lines 4 and 5 of Algorithm 1);
`ax_bayes` goes on from samples with a local search (`optimize`), or does as the other by an option.

Notation: S starts, N samples each, D parameters (bits, then weights), V most levels of a parameter.
θ is held as logits [S, D, V] of a softmax; a bit's two logits are a Bernoulli whose log-odds are their difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from darec_search.samplers.local_search import Acquisition, LocalSearch, rounded
from darec_search.space import SearchSpace

_SMALL = 2048
"""Spaces up to this size are enumerated by `optimize`: exact, and quicker than any search."""
_JUDGED_BY = 256
"""Fresh samples that estimate PO of a θ after the ascent."""
_DRAWS = 100
"""Draws from a θ before it is given up because all of them are excluded."""


@dataclass(frozen=True)
class ProbabilisticReparameterization:
    """The optimiser.

    Args:
        space: the designs.
        starts: values of θ that are optimised side by side.
        samples: N, Monte-Carlo samples of each start and step.
        steps: Adam steps.
        learning_rate: of Adam, on the logits.
    """

    space: SearchSpace
    starts: int = 10
    samples: int = 24
    steps: int = 30
    learning_rate: float = 0.3

    def optimize(
        self,
        acquisition: Acquisition,
        rng: np.random.Generator,
        starts: Tensor | None = None,
        exclude: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Designs with a large acquisition value.

        Args:
            acquisition: what to maximise.
            rng: the only source of randomness.
            starts: [s, D] encoded designs on which some starts are centred; the others are drawn.
            exclude: [e, D] encoded designs that must not be returned.

        Returns:
            candidates [c, D], each once, and their values [c], best first; empty when every design is excluded.
        """
        allowed = _without(acquisition, exclude, self.levels)
        with torch.no_grad():
            if self.space.size <= _SMALL:
                return _ranked(self._everything(), allowed)
            theta = self.ascend(acquisition, self.initial_logits(rng, starts), rng)
            found = self._most_valuable(theta, allowed, rng)
            return _ranked(LocalSearch(self.levels).polish(found, allowed), allowed)

    def draw(
        self,
        acquisition: Acquisition,
        rng: np.random.Generator,
        starts: Tensor | None = None,
        exclude: Tensor | None = None,
    ) -> Tensor | None:
        """Lines 4 and 5 of Algorithm 1: θ* = argmax_θ PO(θ), then z ~ p(z | θ*).

        Where θ* leaves nothing but excluded designs, the next best of the starts' θ takes its place.

        Args:
            acquisition: α, finite everywhere; its largest values should be of order 1, as Adam takes a gradient far
                below 1e-8 for none.
            rng: the only source of randomness.
            starts: as for `optimize`.
            exclude: [e, D] encoded designs that must not be returned.

        Returns:
            [D], the first draw that is not excluded; None if `_DRAWS` draws from every θ are.
        """
        with torch.no_grad():
            theta = self.ascend(acquisition, self.initial_logits(rng, starts), rng)
            objective, _ = estimate(acquisition, theta, _JUDGED_BY, rng)
            for logits in theta[torch.sort(objective, descending=True, stable=True).indices]:
                drawn = sample(logits[None], _DRAWS, rng)[0]
                free = drawn if exclude is None else drawn[~_among(drawn, exclude, self.levels)]
                if len(free):
                    return free[0]
        return None

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of values of each of the D parameters."""
        return (2,) * self.space.bits + tuple(len(levels) for levels in self.space.weights.values())

    def initial_logits(self, rng: np.random.Generator, starts: Tensor | None = None) -> Tensor:
        """θ of every start: near the given designs first, then near random ones."""
        drawn = np.stack([self.space.encode(self.space.sample(rng)) for _ in range(self.starts)])
        centres = torch.from_numpy(drawn)
        if starts is not None:
            centres[: len(starts)] = starts[: self.starts]
        logits = 2.0 * _one_hot(centres, max(self.levels))
        return logits.masked_fill(~self._valid(), -torch.inf)

    def ascend(self, acquisition: Acquisition, logits: Tensor, rng: np.random.Generator) -> Tensor:
        """Adam on the probabilistic objective of every start at once; returns the logits [S, D, V]."""
        logits = logits.clone()
        optimizer = torch.optim.Adam([logits], lr=self.learning_rate, maximize=True)
        for _ in range(self.steps):
            samples = sample(logits, self.samples, rng)
            logits.grad = score_gradient(logits, samples, _values(acquisition, samples))
            optimizer.step()
        return logits

    def _most_valuable(self, logits: Tensor, acquisition: Acquisition, rng: np.random.Generator) -> Tensor:
        """The best of N samples z ~ p(z | θ) of each start, [S, D]."""
        samples = sample(logits, self.samples, rng)
        return samples[torch.arange(len(samples)), _values(acquisition, samples).argmax(1)]

    def _everything(self) -> Tensor:
        axes = [torch.arange(count, dtype=torch.float64) for count in self.levels]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))

    def _valid(self) -> Tensor:
        return torch.arange(max(self.levels)) < torch.tensor(self.levels)[:, None]


def sample(logits: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """`count` designs z ~ p(z | θ) for every θ: [S, count, D], encoded."""
    cumulative = torch.softmax(logits, -1).cumsum(-1)
    uniform = torch.from_numpy(rng.random((len(logits), count, logits.shape[1], 1)))
    return (uniform > cumulative[:, None, :, :-1]).sum(-1).to(torch.float64)


def estimate(acquisition: Acquisition, logits: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Monte-Carlo estimate of PO(θ), (1/N) Σ_i α(z_i) with z_i ~ p(z | θ).

    Args:
        acquisition: α.
        logits: [S, D, V] θ.
        count: N, at least 2.
        rng: draws the samples.

    Returns:
        estimates [S] and their standard errors [S].
    """
    values = _values(acquisition, sample(logits, count, rng))
    return values.mean(1), values.std(1) / count**0.5


def score_gradient(logits: Tensor, samples: Tensor, values: Tensor) -> Tensor:
    """Unbiased estimate of ∇PO from samples: mean of (α(z_i) - b_i) ∇ log p(z_i | θ).

    The baseline b_i is the mean of the other samples' values, which is independent of z_i and so adds no bias.

    Args:
        logits: [S, D, V] θ.
        samples: [S, N, D] designs drawn from it, N at least 2.
        values: [S, N] their acquisition values.

    Returns:
        [S, D, V] gradient with respect to the logits.
    """
    count = values.shape[1]
    advantages = (values - values.mean(1, keepdim=True)) * count / (count - 1)
    scores = _one_hot(samples, logits.shape[-1]) - torch.softmax(logits, -1)[:, None]
    return torch.einsum("sn,sndv->sdv", advantages, scores) / count


def _values(acquisition: Acquisition, samples: Tensor) -> Tensor:
    """α of samples [S, N, D]: [S, N]."""
    return acquisition(samples.flatten(0, 1)).reshape(samples.shape[:2])


def _one_hot(encoded: Tensor, size: int) -> Tensor:
    return torch.nn.functional.one_hot(encoded.long(), size).to(torch.float64)


def _among(x: Tensor, listed: Tensor, levels: tuple[int, ...]) -> Tensor:
    """[m] whether each of the designs [m, D] is one of those listed [e, D], e at least 1."""
    size = max(levels)
    equal = _one_hot(x, size).flatten(1) @ _one_hot(listed, size).flatten(1).T
    return equal.amax(1) >= len(levels)


def _without(acquisition: Acquisition, banned: Tensor | None, levels: tuple[int, ...]) -> Acquisition:
    """The acquisition, -inf on banned designs."""
    if banned is None or not len(banned):
        return acquisition
    return lambda x: acquisition(x).masked_fill(_among(x, banned, levels), -torch.inf)


def _ranked(designs: Tensor, acquisition: Acquisition) -> tuple[Tensor, Tensor]:
    """Allowed designs, each once, best first; equal values in lexicographic order."""
    designs = torch.unique(designs, dim=0)
    values = acquisition(designs)
    order = torch.sort(rounded(values), descending=True, stable=True).indices
    order = order[torch.isfinite(values[order])]
    return designs[order], values[order]
