"""Objectives that depend on few of the bits, in any way: a table over these bits.

To the structured kernels every bit is relevant: the best design with some irrelevant bits flipped looks promising and
uncertain, again and again. So the relevant bits S are inferred too, the way spike-and-slab regression does it (George
and McCulloch 1993). Given S,

    k_S(x, x') = ρ^|{i ∈ S: x_i ≠ x'_i}| · Π over loss weights of ρ_λ(λ, λ')

says next to nothing about designs that differ in many bits of S, and sees no difference where none of S differs. Sets
of every size are as likely, and so are all sets of a size and all G settings of ρ and the noise ratio ν:

    log p(S, ρ, ν) = -log(d + 1) - log (d choose |S|) - log G.

The marginal likelihood is the surrogate's, so that tables and bank can be weighed against each other. The prior of a
set (some 20 nats for six of 36 bits) keeps tables out where the bank explains the results.

Notation: d bits, n observations, m sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from darec_search.samplers.kernels import StructuredKernels
from darec_search.samplers.surrogate import Kernels, log_marginal

RHO = (0.05, 0.2, 0.5)
"""Correlations that one differing bit of S may leave."""
NOISE = (0.1, 0.4, 1.6)
"""Ratios of noise to signal variance."""
COUNT = 12
"""Tables that stand for all."""
_NEGLIGIBLE = 0.01
"""Weight, relative to the best table's, below which one is left out."""
_LARGEST = 12
"""Bits of a set at most."""
_FALL = 4.0
"""Nats by which a size's evidence has fallen when the search ends."""
_EVERY_PAIR_UP_TO = 120
"""Observations up to which all pairs of bits are looked at: a bit of a table may have no effect by itself."""
_PAIRED = 8
"""Bits of which all pairs are looked at beyond."""
_WIDTHS = ((40, 16), (80, 8), (120, 4), (math.inf, 2))
"""Sets of a size that are grown further, up to so many observations: more of them single out fewer sets."""
_SETTINGS = torch.cartesian_prod(torch.tensor(RHO, dtype=torch.float64), torch.tensor(NOISE, dtype=torch.float64))


@dataclass(frozen=True)
class Tables:
    """The most probable tables.

    Args:
        sets: [m, d] 1 where a bit is relevant.
        rho: [m].
        noise: [m] noise ratios.
        log_evidence: [m] of each, in proportion to its posterior; they sum to that of all tables that were met.
    """

    sets: Tensor
    rho: Tensor
    noise: Tensor
    log_evidence: Tensor

    def __len__(self) -> int:
        return len(self.rho)


def find_tables(kernels: StructuredKernels, x: Tensor, y: Tensor, noise_scale: Tensor) -> Tables:
    """Beam search over sets of relevant bits, by size.

    All sets one bit larger than the best ones of a size are scored at the ρ and ν of the best set so far, the best of
    them at all settings. Sets that were not met count as impossible, so the evidence is a lower bound.

    Args:
        kernels: of a space with bits.
        x: [n, D] encoded points.
        y: [n] standardised values.
        noise_scale: [n] noise variance of each relative to the typical one.
    """
    evidence = _Evidence(kernels, x, y, noise_scale)
    width = next(width for most, width in _WIDTHS if len(y) <= most)
    one = torch.eye(kernels.bits, dtype=torch.float64)
    sets, setting = torch.zeros(1, kernels.bits, dtype=torch.float64), _SETTINGS[:1]
    met: list[tuple[Tensor, Tensor, Tensor]] = []
    by_size: list[Tensor] = []
    for size in range(min(_LARGEST, kernels.bits) + 1):
        rough = evidence(sets, setting)[:, 0]
        order = _descending(rough)
        sets, rough = sets[order], rough[order]
        best = sets[:width]
        scores_mg = evidence(best, _SETTINGS)
        of_sets = torch.logsumexp(scores_mg, 1)
        # What all settings are worth to the best set they are taken to be worth to those scored at one.
        others = rough[len(best) :] + of_sets[0] - rough[0]
        by_size.append(torch.logsumexp(torch.cat([of_sets, others]), 0))
        met.append((best, _SETTINGS[scores_mg.argmax(1)], of_sets))
        if by_size[-1] < max(by_size) - _FALL:
            break
        setting = _SETTINGS[scores_mg.flatten().argmax() % len(_SETTINGS)][None]
        grown_from = width if size != 1 else kernels.bits if len(y) <= _EVERY_PAIR_UP_TO else _PAIRED
        grown = (sets[:grown_from, None] + one).flatten(0, 1)
        sets = torch.unique(grown[grown.max(1).values <= 1], dim=0)
    sets, settings, scores = (torch.cat(parts) for parts in zip(*met, strict=True))
    order = _descending(scores)[:COUNT]
    order = order[scores[order] >= scores[order[0]] + math.log(_NEGLIGIBLE)]
    rho, noise = settings[order].unbind(1)
    evidence_m = torch.log_softmax(scores[order], 0) + torch.logsumexp(torch.stack(by_size), 0)
    return Tables(sets[order], rho, noise, evidence_m)


class WithTables:
    """Other components, and one for every table.

    Args:
        kernels: the others.
        structured: those of the space.
        tables: sets of relevant bits.
    """

    def __init__(self, kernels: Kernels, structured: StructuredKernels, tables: Tables) -> None:
        self._kernels, self._structured, self._tables = kernels, structured, tables

    def gram(self, left_nd: Tensor, right_md: Tensor) -> Tensor:
        """Every component between two sets of encoded points: [B + m, n, k], float64."""
        tables = _tables(self._structured, left_nd, right_md, self._tables.sets, self._tables.rho)
        return torch.cat([self._kernels.gram(left_nd, right_md), tables])

    def diagonal(self, points_nd: Tensor) -> Tensor:
        """k(x, x) of every component: [B + m, n]."""
        others = self._kernels.diagonal(points_nd)
        return torch.cat([others, others.new_ones(len(self._tables), len(points_nd))])


class _Evidence:
    """log p(y | S, ρ, ν) + log p(S, ρ, ν) of some results."""

    def __init__(self, kernels: StructuredKernels, x: Tensor, y: Tensor, noise_scale: Tensor) -> None:
        self._kernels, self._x, self._y, self._noise_scale = kernels, x, y, noise_scale

    def __call__(self, sets_md: Tensor, settings_g2: Tensor) -> Tensor:
        """[m, G]."""
        found = []
        for rho, noise in settings_g2:
            covariance = _tables(self._kernels, self._x, self._x, sets_md, rho.expand(len(sets_md))).add_(1)
            covariance.diagonal(dim1=-2, dim2=-1).add_(noise * self._noise_scale)
            found.append(log_marginal(torch.linalg.cholesky(covariance), self._y) + _log_prior(sets_md))
        return torch.stack(found, 1)


def _tables(kernels: StructuredKernels, left_nd: Tensor, right_kd: Tensor, sets_md: Tensor, rho_m: Tensor) -> Tensor:
    """k_S between two sets of encoded points, [m, n, k]."""
    left, right = 1 - 2 * left_nd[:, : kernels.bits], 1 - 2 * right_kd[:, : kernels.bits]
    agreeing_less_differing = (left * sets_md[:, None]) @ right.T
    differing = (sets_md.sum(1)[:, None, None] - agreeing_less_differing).mul_(0.5)
    return differing.mul_(rho_m.log()[:, None, None]).exp_().mul_(kernels.levels_together(left_nd, right_kd))


def _log_prior(sets_md: Tensor) -> Tensor:
    """[m] log p(S, ρ, ν)."""
    d, size = sets_md.shape[1], sets_md.sum(1)
    ways = math.lgamma(d + 1) - torch.lgamma(size + 1) - torch.lgamma(d - size + 1)
    return -ways - math.log((d + 1) * len(_SETTINGS))


def _descending(scores: Tensor) -> Tensor:
    """Order that the last bits of a matrix product do not decide."""
    return torch.sort(scores.round(decimals=9), descending=True, stable=True).indices
