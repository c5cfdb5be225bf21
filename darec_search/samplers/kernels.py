"""Covariances over architectures: one per idea of what an adapter's effect may look like.

Notation: d bits, L layers, S slots, W loss weights that have more than one level.
x encodes a point (`SearchSpace.encode`), z = 1 - 2x in {-1, +1}^d are its bits, λ its level indices.
Every component k(x, x') has mean diagonal 1 over uniformly drawn points, so that weights of components compare.

| component | k(x, x') |
|---|---|
| linear | z·z'/d |
| smooth-ℓ | Σ_slots z_s' C z'_s / d, C_ij = exp(-(i-j)²/2ℓ²) over depth |
| neighbours | mean over pairs of bits in the same or adjacent layers of z_i z_j z'_i z'_j |
| pairs | ((z·z')² - d) / (d(d-1)), every pair of bits |
| hamming-r | exp(-r h/d), h bits differ |
| weights | mean over λ of ρ = exp(-(λ-λ')²/(2·1.5²)) |

Without bits (a baseline's settings) these are the mean of all ρ, their product, and each ρ by itself.

Loss weights modulate: ½(1+ρ) on the linear parts (the i-th weight on the i-th slot, their mean on the others'),
the product of all ρ on the Hamming parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from darec_search.space import SearchSpace

DEPTH_SCALES = (1.5, 5.0)
HAMMING_RATES = (2.0, 6.0)
LEVEL_SCALE = 1.5


class StructuredKernels:
    """The B components of a space.

    Args:
        space: gives d, L, S and the levels. Components that coincide on a small space are left out.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._layers, self._slots, self._d = space.layers, space.slots, space.bits
        self._free = [i for i, levels in enumerate(space.weights.values()) if len(levels) > 1]
        depth = torch.arange(space.layers, dtype=torch.float64)
        squared = (depth[:, None] - depth) ** 2
        scales = DEPTH_SCALES if space.layers > 1 else ()
        smooth = [torch.exp(-squared / (2 * scale**2)) for scale in scales]
        self._depth_cll = torch.stack([torch.eye(space.layers, dtype=torch.float64), *smooth])
        steps = torch.arange(max(map(len, space.weights.values()), default=1), dtype=torch.float64)
        self._rho = torch.exp(-((steps[:, None] - steps) ** 2) / (2 * LEVEL_SCALE**2))
        if not space.bits:
            self.names = ["weights", "together", *(f"level-{i}" for i in self._free)]
            return
        pairs = itertools.combinations(range(space.bits), 2)
        near = [(i, j) for i, j in pairs if j // space.slots - i // space.slots <= 1]
        self._near = torch.tensor(near, dtype=torch.long).reshape(-1, 2).T
        self.names = ["linear", *(f"smooth-{scale:g}" for scale in scales)]
        self.names += ["neighbours", "pairs"] if space.bits > 1 else []
        self.names += [f"hamming-{rate:g}" for rate in HAMMING_RATES]
        self.names += ["weights"] if self._free else []

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bits(self) -> int:
        """Number d of bits."""
        return self._d

    def levels_together(self, left_nd: Tensor, right_md: Tensor) -> Tensor:
        """Product of all loss weights' ρ between two sets of encoded points: [n, m]."""
        return self._level_correlations(left_nd[:, self._d :], right_md[:, self._d :]).prod(0)

    def gram(self, left_nd: Tensor, right_md: Tensor) -> Tensor:
        """Every component between two sets of encoded points: [B, n, m], float64."""
        left_z, right_z = 1 - 2 * left_nd[:, : self._d], 1 - 2 * right_md[:, : self._d]
        rho_wnm = self._level_correlations(left_nd[:, self._d :], right_md[:, self._d :])
        if not self._d:
            mean = rho_wnm.mean(0) if len(rho_wnm) else rho_wnm.prod(0)
            return torch.stack([mean, rho_wnm.prod(0), *rho_wnm])
        inner = left_z @ right_z.T
        parts = list(self._linear(left_z, right_z, rho_wnm))
        if self._d > 1:
            near = self._near_products(left_z) @ self._near_products(right_z).T / self._near.shape[1]
            parts += [near, (inner**2 - self._d) / (self._d * (self._d - 1))]
        differing = (self._d - inner) / (2 * self._d)
        together = rho_wnm.prod(0) if len(rho_wnm) else 1.0
        parts += [torch.exp(-rate * differing).mul_(together) for rate in HAMMING_RATES]
        parts += [rho_wnm.mean(0)] if len(rho_wnm) else []
        return torch.stack(parts)

    def diagonal(self, points_nd: Tensor) -> Tensor:
        """k(x, x) of every component: [B, n]. It differs from 1 for the smooth ones alone."""
        if not self._d:
            return torch.ones(len(self), len(points_nd), dtype=torch.float64)
        z_snl = self._by_slot(1 - 2 * points_nd[:, : self._d])
        smooth = torch.einsum("snl,clm,snm->cn", z_snl, self._depth_cll, z_snl) / self._d
        ones = torch.ones(len(self) - len(smooth), len(points_nd), dtype=torch.float64)
        return torch.cat([smooth, ones])

    def averages(self, points_nd: Tensor, sets_fk: Tensor, shares: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Covariances of f(x) with the averages E[χ_S f], χ_S = Π_{i∈S} z_i, and variances of these averages.

        The average is over all 2^d architectures, each as likely, and over λ by `shares`. Every component is a
        polynomial in the z_i z'_i, of which it leaves the term of S:

        | component | one bit i, layer l, slot s | bits i, j |
        |---|---|---|
        | linear, smooth | (C z_s)_l / d | 0 |
        | neighbours | 0 | z_i z_j / number of near pairs, if they are near |
        | pairs | 0 | 2 z_i z_j / (d(d-1)) |
        | hamming-r | a^(d-1) b z_i | a^(d-2) b² z_i z_j, with a = (1 + e^(-r/d))/2, b = 1 - a |

        times what `shares` make of the loss weights' ρ.

        Args:
            points_nd: encoded points.
            sets_fk: F sets S of k bits each, k = 0, 1 or 2; long.
            shares: for each loss weight with more than one level its measure, [levels]; signed for a contrast.

        Returns:
            covariances [B, n, F] and variances [B, F].
        """
        z = 1 - 2 * points_nd[:, : self._d]
        rho = [self._rho[: len(share), : len(share)] @ share for share in shares]
        levels = [points_nd[:, self._d + i].long() for i in self._free]
        seen_wn = [of_level[level] for of_level, level in zip(rho, levels, strict=True)]
        own = [float(share @ of_level) for share, of_level in zip(shares, rho, strict=True)]
        masses, own_w = z.new_tensor([float(share.sum()) for share in shares]), z.new_tensor(own)
        cross_nw = torch.stack(seen_wn, 1) if shares else z.new_zeros(len(z), 0)
        smoothed_cnd = (self._by_slot(z) @ self._depth_cll[:, None]).permute(0, 2, 3, 1).flatten(2)
        cross = self._average(z[:, sets_fk].prod(-1), smoothed_cnd, sets_fk, cross_nw, masses)
        ones = z.new_ones(1, len(sets_fk))
        # At itself a smooth component is C_ll = 1, whatever the layer.
        alike = z.new_ones(len(self._depth_cll), 1, self._d)
        return cross, self._average(ones, alike, sets_fk, own_w[None], masses**2)[:, 0]

    def _average(self, chi_nf: Tensor, smoothed_cnd: Tensor, sets_fk: Tensor, rho_nw: Tensor, mass_w: Tensor) -> Tensor:
        """[B, n, F] from the products of bits, the smoothed bits, and the averaged ρ of each loss weight."""
        order, d, none = sets_fk.shape[1], self._d, torch.zeros_like(chi_nf)
        others = [torch.cat([mass_w[:i], mass_w[i + 1 :]]).prod() for i in range(len(mass_w))]
        parts_nw = rho_nw * torch.stack(others) if others else rho_nw
        if order == 1:
            bits = sets_fk[:, 0]
            slots_ns = self._slot_modulation(parts_nw, mass_w)
            parts = list(smoothed_cnd[:, :, bits] / d * slots_ns[:, bits % self._slots])
        else:
            parts = [none] * len(smoothed_cnd)
        if d > 1:
            near = {tuple(pair) for pair in self._near.T.tolist()}
            is_near = torch.tensor([tuple(sorted(bits)) in near for bits in sets_fk.tolist()], dtype=torch.float64)
            parts += [chi_nf * is_near / self._near.shape[1], chi_nf * 2 / (d * (d - 1))] if order == 2 else [none] * 2
        for rate in HAMMING_RATES:
            differing = (1 - math.exp(-rate / d)) / 2
            parts.append(chi_nf * (1 - differing) ** (d - order) * differing**order * rho_nw.prod(1)[:, None])
        if self._free:
            parts.append(chi_nf * parts_nw.mean(1)[:, None] if order == 0 else none)
        return torch.stack(parts)

    def _slot_modulation(self, parts_nw: Tensor, mass_w: Tensor) -> Tensor:
        """[n, S] share of each slot's linear part that the loss weights leave."""
        if not self._free:
            return parts_nw.new_ones(len(parts_nw), self._slots)
        own = {weight: place for place, weight in enumerate(self._free)}
        rho = [parts_nw[:, own[slot]] if slot in own else parts_nw.mean(1) for slot in range(self._slots)]
        return (mass_w.prod() + torch.stack(rho, 1)) / 2

    def _linear(self, left_z: Tensor, right_z: Tensor, rho_wnm: Tensor) -> Tensor:
        """Linear and smooth parts [1 + scales, n, m], each slot's share modulated by the loss weights."""
        right_slm = self._by_slot(right_z).transpose(-1, -2) / self._d
        smoothed_csnl = self._by_slot(left_z) @ self._depth_cll[:, None]
        if not len(rho_wnm):
            # One product for all slots: their blocks side by side.
            return smoothed_csnl.transpose(1, 2).flatten(2) @ right_slm.flatten(0, 1)
        own = {weight: rho for weight, rho in zip(self._free, rho_wnm, strict=True) if weight < self._slots}
        others = (1 + rho_wnm.mean(0)) / 2
        gram_cnm = left_z.new_zeros(len(smoothed_csnl), len(left_z), right_slm.shape[-1])
        for slot in range(self._slots):
            modulation = (1 + own[slot]) / 2 if slot in own else others
            gram_cnm.addcmul_(smoothed_csnl[:, slot] @ right_slm[slot], modulation)
        return gram_cnm

    def _by_slot(self, z_nd: Tensor) -> Tensor:
        return z_nd.reshape(-1, self._layers, self._slots).permute(2, 0, 1)

    def _near_products(self, z_nd: Tensor) -> Tensor:
        return z_nd[:, self._near[0]] * z_nd[:, self._near[1]]

    def _level_correlations(self, left_nw: Tensor, right_mw: Tensor) -> Tensor:
        """ρ of every free loss weight, [W, n, m], looked up by level."""
        found = [self._rho[left_nw[:, i].long()][:, right_mw[:, i].long()] for i in self._free]
        return torch.stack(found) if found else left_nw.new_zeros(0, len(left_nw), len(right_mw))


def bank(components: int, size: int, noise: tuple[float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A fixed bank of hyperparameters: component weightings and noise ratios.

    A third of the weightings lie near a corner (one component explains nearly all), one is uniform, the others are
    Dirichlet(½); noise ratios are log-uniform and stratified.

    Args:
        components: B.
        size: number M of bank entries.
        noise: range of the noise variance over the signal's amplitude.
        generator: fixes the draw.

    Returns:
        weightings [M, B], rows sum to 1; noise ratios [M].
    """
    gammas = torch.randn(size, components, generator=generator, dtype=torch.float64) ** 2  # ∝ Gamma(½)
    weightings = gammas / gammas.sum(1, keepdim=True)
    corners = min(size - 1, max(components, size // 3))
    corner = torch.eye(components, dtype=torch.float64)[torch.arange(corners) % components]
    weightings[:corners] = 0.85 * corner + 0.15 * weightings[:corners]
    weightings[corners] = 1 / components
    low, high = (math.log(bound) for bound in noise)
    strata = torch.randperm(size, generator=generator) + torch.rand(size, generator=generator, dtype=torch.float64)
    return weightings, torch.exp(low + (high - low) * strata / size)
