"""Probabilistic reparameterisation: optimise an acquisition over discrete designs by gradients of an expectation.

Daulton, Wan, Eriksson, Balandat, Osborne, Bakshy (2022), "Bayesian Optimization over Discrete and Mixed Spaces via
Probabilistic Reparameterization"; Algorithm 1 of the DARec paper. A design z is drawn from p(z | θ): a Bernoulli for
each bit, a categorical for each loss weight's level. The probabilistic objective

    PO(θ) = E_{z ~ p(z|θ)}[α(z)],      ∇PO(θ) = E[α(z) ∇ log p(z|θ)]

is smooth in θ, its maxima are point masses on maxima of α, and N samples estimate both without bias.

Notation: S starts, N samples each, D parameters (bits, then weights), V most levels of a parameter.
θ is held as logits [S, D, V] of a softmax; a bit's two logits are a Bernoulli whose log-odds are their difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from darec_search.space import SearchSpace

Acquisition = Callable[[Tensor], Tensor]
"""[m, D] encoded points to [m] values, larger is better."""

_SMALL = 2048
"""Spaces up to this size are enumerated: exact, and quicker than any search."""
_DECIMALS = 9
"""Values are compared after rounding, so that the last bits of a matrix product never decide."""


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
        banned = torch.zeros(0, len(self.levels)) if exclude is None else exclude
        allowed = _without(acquisition, banned.to(torch.float64), self.levels)
        with torch.no_grad():
            if self.space.size <= _SMALL:
                return _ranked(self._everything(), allowed)
            theta = self.ascend(acquisition, self.initial_logits(rng, starts), rng)
            found = self._most_valuable(theta, allowed, rng)
            return _ranked(self._polished(found, allowed), allowed)

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
            values = acquisition(samples.flatten(0, 1)).reshape(samples.shape[:2])
            logits.grad = score_gradient(logits, samples, values)
            optimizer.step()
        return logits

    def _most_valuable(self, logits: Tensor, acquisition: Acquisition, rng: np.random.Generator) -> Tensor:
        """The best of N samples z ~ p(z | θ) of each start, [S, D]."""
        samples = sample(logits, self.samples, rng)
        values = acquisition(samples.flatten(0, 1)).reshape(samples.shape[:2])
        return samples[torch.arange(len(samples)), values.argmax(1)]

    def _polished(self, designs: Tensor, acquisition: Acquisition) -> Tensor:
        """Local optima: single changes from every design, then all double changes from the best."""
        designs = self._climb(designs, acquisition, self._changes())
        twice = self._double_changes()
        for _ in range(3):
            best = designs[_rounded(acquisition(designs)).argmax()][None]
            improved = self._climb(best, acquisition, twice, rounds=1)
            if torch.equal(improved, best):
                break
            designs = torch.cat([designs, self._climb(improved, acquisition, self._changes())])
        return designs

    def _climb(self, designs: Tensor, acquisition: Acquisition, changes: Tensor, rounds: int = 100) -> Tensor:
        """Best-improvement ascent of every design under a set of changes [k, D] (added modulo the levels)."""
        levels = torch.tensor(self.levels, dtype=torch.float64)
        values = _rounded(acquisition(designs))
        active = torch.arange(len(designs))
        for _ in range(rounds):
            near = (designs[active, None] + changes) % levels
            near_values = _rounded(acquisition(near.flatten(0, 1))).reshape(len(active), -1)
            best_values, best = near_values.max(1)
            better = best_values > values[active]
            if not better.any():
                break
            designs, values = designs.clone(), values.clone()
            designs[active[better]] = near[better, best[better]]
            values[active[better]] = best_values[better]
            active = active[better]
        return designs

    def _changes(self) -> Tensor:
        """Every change of one parameter, [k, D]: a flip, or any other level."""
        rows = [(i, step) for i, count in enumerate(self.levels) for step in range(1, count)]
        changes = torch.zeros(len(rows), len(self.levels), dtype=torch.float64)
        for row, (i, step) in enumerate(rows):
            changes[row, i] = step
        return changes

    def _double_changes(self) -> Tensor:
        """Every change of two different parameters."""
        single = self._changes()
        first, second = torch.triu_indices(len(single), len(single), offset=1)
        apart = ((single != 0).double() @ (single != 0).double().T)[first, second] == 0
        return (single[first] + single[second])[apart]

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


def _one_hot(encoded: Tensor, size: int) -> Tensor:
    return torch.nn.functional.one_hot(encoded.long(), size).to(torch.float64)


def _rounded(values: Tensor) -> Tensor:
    return values.round(decimals=_DECIMALS)


def _without(acquisition: Acquisition, banned: Tensor, levels: tuple[int, ...]) -> Acquisition:
    """The acquisition, -inf on banned designs."""
    if not len(banned):
        return acquisition
    size = max(levels)
    banned_hot = _one_hot(banned, size).flatten(1).T

    def allowed(x: Tensor) -> Tensor:
        equal = (_one_hot(x, size).flatten(1) @ banned_hot).amax(1) >= len(levels)
        return acquisition(x).masked_fill(equal, -torch.inf)

    return allowed


def _ranked(designs: Tensor, acquisition: Acquisition) -> tuple[Tensor, Tensor]:
    """Allowed designs, each once, best first; equal values in lexicographic order."""
    designs = torch.unique(designs, dim=0)
    values = acquisition(designs)
    order = torch.sort(_rounded(values), descending=True, stable=True).indices
    order = order[torch.isfinite(values[order])]
    return designs[order], values[order]
