"""Cheaper evaluations of the same designs: how they relate to the target, and which one is worth its cost.

Fidelity 0 is the target; 1 … F-1 are cheaper, dearest first. What an evaluation at fidelity s shows is taken as

    y = o_s + a_s h_s(x) + ε,   cov(h_s(x), h_t(x')) = R_st (1 + k(x, x')),   R_st = Π ρ between s and t,

with o_0 = 0, a_0 = 1, o_s ~ N(0, 1) and ε of variance ν b_s, in units of the amplitude: the chain of Kennedy & O'Hagan
(2000) with correlations in place of slopes. The ρ of neighbours, a_s and b_s come from a bank; the marginal likelihood
weighs them with all else, so that a fidelity which foretells nothing ends with small ρ.

Notation: M bank entries, F fidelities, n observations.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from darec_search.samplers.base import Observation

CORRELATIONS = (1.0, 0.95, 0.8, 0.5, 0.0)
"""ρ of neighbouring fidelities, equally often in the bank."""
_SCALES = (0.5, 2.0)
"""Range of a_s, log-uniform; the values are put on one scale by `comparable` before."""
_NOISE = (1 / 3, 3.0)
"""Range of b_s, log-uniform."""
_TARGET_SHARE = 0.25
"""Least share of all costs that goes to evaluations at the target."""


@dataclass(frozen=True)
class Links:
    """How the fidelities of M bank entries hang together.

    Args:
        signal: [M, F, F] a_s a_t R_st.
        noise: [M, F] b_s.
    """

    signal: Tensor
    noise: Tensor

    def of(self, entries: Tensor) -> Links:
        """Those of some bank entries."""
        return Links(self.signal[entries], self.noise[entries])

    def among(self, covariance: Tensor, fidelity: Tensor) -> Tensor:
        """Covariance [M, n, n] of observations at fidelities [n] from that of their designs."""
        same = (fidelity[:, None] == fidelity) & (fidelity > 0)
        return covariance * self.signal[:, fidelity][:, :, fidelity] + same.to(covariance.dtype)

    def toward(self, covariance: Tensor, fidelity: Tensor, other: int) -> Tensor:
        """Covariance [M, n, m] of observations at fidelities [n] with designs at another one."""
        same = (fidelity == other) & (fidelity > 0)
        return covariance * self.signal[:, fidelity, other, None] + same[:, None].to(covariance.dtype)

    def variance(self, variance: Tensor, fidelity: int) -> Tensor:
        """Prior variance [M, m] at a fidelity from that of the designs."""
        return variance * self.signal[:, fidelity, fidelity, None] + float(fidelity > 0)


def draw_links(size: int, fidelities: int, generator: torch.Generator) -> Links:
    """The links of a bank, stratified.

    Args:
        size: M.
        fidelities: F, at least 2.
        generator: fixes the draw.
    """

    def uniform() -> Tensor:
        strata = torch.stack([torch.randperm(size, generator=generator) for _ in range(fidelities - 1)], dim=1)
        return (strata + torch.rand(size, fidelities - 1, generator=generator, dtype=torch.float64)) / size

    def log_uniform(low: float, high: float) -> Tensor:
        drawn = torch.exp(math.log(low) + math.log(high / low) * uniform())
        return torch.cat([torch.ones(size, 1, dtype=torch.float64), drawn], dim=1)

    neighbours = torch.tensor(CORRELATIONS, dtype=torch.float64)[(uniform() * len(CORRELATIONS)).long()]
    correlation = torch.ones(size, fidelities, fidelities, dtype=torch.float64)
    for s in range(fidelities):
        for t in range(s + 1, fidelities):
            correlation[:, s, t] = correlation[:, t, s] = neighbours[:, s:t].prod(1)
    scale = log_uniform(*_SCALES)
    return Links(correlation * scale[:, :, None] * scale[:, None], log_uniform(*_NOISE))


def neutral_links(size: int, fidelities: int) -> Links:
    """Links of `size` entries whose fidelities are all alike, ρ as in the middle of the bank."""
    steps = torch.arange(fidelities, dtype=torch.float64)
    correlation = CORRELATIONS[len(CORRELATIONS) // 2] ** (steps[:, None] - steps).abs()
    return Links(correlation.expand(size, -1, -1), torch.ones(size, fidelities, dtype=torch.float64))


def target_is_due(costs: Sequence[float], tried: Sequence[int]) -> bool:
    """Whether the next evaluation has to be at the target, which gets at least a share of all costs.

    Without it the links are a guess.

    Args:
        costs: of every fidelity.
        tried: fidelities of everything told and under way.
    """
    return tried.count(0) * costs[0] < _TARGET_SHARE * math.fsum(costs[fidelity] for fidelity in tried)


def comparable(observations: Sequence[Observation]) -> list[Observation]:
    """Values of cheaper fidelities moved to the target's mean and spread; the order does not matter.

    Designs differ between fidelities, so mean and spread are a beginning that the bank's o_s and a_s correct.
    """
    by_fidelity = {s: [o.value for o in observations if o.fidelity == s] for s in {o.fidelity for o in observations}}
    target = min(by_fidelity)
    mean, spread = _moments(by_fidelity[target])
    moved = []
    for observation in observations:
        own_mean, own_spread = _moments(by_fidelity[observation.fidelity])
        factor = spread / own_spread if spread and own_spread else 1.0
        if observation.fidelity != target:
            stderr = None if observation.stderr is None else factor * observation.stderr
            value = mean + factor * (observation.value - own_mean)
            observation = replace(observation, value=value, stderr=stderr)
        moved.append(observation)
    return moved


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; 0 where too few values tell it."""
    mean = math.fsum(values) / len(values)
    return mean, statistics.pstdev(values, mean) if len(values) > 2 else 0.0
