"""What mattered: posterior effects of adapters, pairs of adapters and loss weights, with credible intervals.

An effect is a linear functional of the objective f, so that mean and scale of its posterior are exact under every
Gaussian process of the mixture (`StructuredMixture.contrasts`); the interval is the mixture's. With z = 1 - 2x in
{-1, +1}, averages over all architectures and over λ by its `shares`:

    effect of making adapter i parallel   E[f | i parallel] - E[f | i serial] = -2 E[z_i f]
    interaction of the adapters i and j   by how much j's being parallel raises the effect of i = 4 E[z_i z_j f]
    level l of a loss weight              E[f | l] - E[f]

The latter is taken over all architectures, or at a single one where that alone was tried at several levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darec_search.samplers.base import LEVEL, Observation
from darec_search.samplers.kernels import StructuredKernels
from darec_search.samplers.proposer import Proposer
from darec_search.space import SearchSpace

Shares = Mapping[str, Sequence[float]]
"""By loss weight the share of each of its levels; they add up to 1."""


@dataclass(frozen=True)
class Effect:
    """A posterior mean and its 90 % credible interval, in the objective's units."""

    mean: float
    low: float
    high: float


class Effects:
    """Effects under the surrogate of some results.

    Args:
        space: the designs.
        observations: results, at least one.
    """

    def __init__(self, space: SearchSpace, observations: Sequence[Observation]) -> None:
        self._space, self._kernels = space, StructuredKernels(space)
        self._model = Proposer(space).model_for_effects(observations)

    def adapters(self, shares: Shares) -> list[Effect]:
        """Effect of making each adapter parallel, by bit."""
        sets = torch.arange(self._space.bits)[:, None]
        return self._averages(sets, -2.0, shares)

    def pairs(self, shares: Shares) -> dict[tuple[int, int], Effect]:
        """Interaction of each pair of adapters, by their bits."""
        pairs = list(itertools.combinations(range(self._space.bits), 2))
        if not pairs:
            return {}
        return dict(zip(pairs, self._averages(torch.tensor(pairs), 4.0, shares), strict=True))

    def levels(self, name: str, shares: Shares) -> list[Effect]:
        """Each level of a loss weight against their average, over all architectures."""
        found = []
        for contrast in self._contrasts(name, shares):
            nothing = torch.zeros(1, 0, dtype=torch.long)
            cross, prior = self._kernels.averages(self._model.points, nothing, list(contrast.values()))
            found += self._effects(cross, prior, 1.0)
        return found

    def levels_at(self, bits: Sequence[int], name: str, shares: Shares) -> list[Effect]:
        """The same at a single architecture."""
        levels = [range(len(levels)) for levels in self._space.weights.values()]
        grid = list(itertools.product(*levels))
        designs = torch.tensor([[*bits, *row] for row in grid], dtype=torch.float64)
        signed = [[math.prod(float(contrast[key][row[place]]) for place, key in self._free()) for row in grid]
                  for contrast in self._contrasts(name, shares)]  # fmt: skip
        weights_mf = torch.tensor(signed, dtype=torch.float64).T
        cross = self._kernels.gram(self._model.points, designs) @ weights_mf
        prior = torch.einsum("mf,bmk,kf->bf", weights_mf, self._kernels.gram(designs, designs), weights_mf)
        return self._effects(cross, prior, 1.0)

    def _averages(self, sets: Tensor, factor: float, shares: Shares) -> list[Effect]:
        measures = [torch.tensor(shares[name], dtype=torch.float64) for _, name in self._free()]
        return self._effects(*self._kernels.averages(self._model.points, sets, measures), factor)

    def _effects(self, cross: Tensor, prior: Tensor, factor: float) -> list[Effect]:
        found = self._model.contrasts(factor * cross, factor**2 * prior, LEVEL)
        return [Effect(*row) for row in torch.stack(found, 1).tolist()]

    def _contrasts(self, name: str, shares: Shares) -> list[dict[str, Tensor]]:
        """For each level of a loss weight the measures whose product takes the level and leaves the average."""
        measures = {key: torch.tensor(shares[key], dtype=torch.float64) for _, key in self._free()}
        levels = torch.eye(len(measures[name]), dtype=torch.float64)
        return [{**measures, name: level - measures[name]} for level in levels]

    def _free(self) -> list[tuple[int, str]]:
        """Place and name of each loss weight with more than one level."""
        return [(place, name) for place, (name, levels) in enumerate(self._space.weights.items()) if len(levels) > 1]
