"""Objectives without smoothness over depth: NK, contamination control, Ackley, LABS, and a few bits of high order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from darec_search.space import SearchSpace

Array = NDArray[np.float64]
Drawn = tuple[SearchSpace, Callable[[Array], Array], float]

LAYERS, SLOTS = 12, 3
BITS = LAYERS * SLOTS


def nk(rng: np.random.Generator, k: int = 3) -> Drawn:
    """Mean over bits i of a random table indexed by bits i … i+k on a ring."""
    tables = rng.random((BITS, 2 ** (k + 1)))
    powers = 2 ** np.arange(k + 1)
    window = (np.arange(BITS)[:, None] + np.arange(k + 1)) % BITS

    def value(x: Array) -> Array:
        return tables[np.arange(BITS), x[:, window].astype(int) @ powers].mean(1)

    return SearchSpace(LAYERS, SLOTS), value, _ring_optimum(tables, k) / BITS


def _ring_optimum(tables: Array, k: int) -> float:
    """Largest sum: for every pattern of the first k bits, best paths of k-bit states once around the ring."""
    states = 2**k
    state, bit = np.meshgrid(np.arange(states), np.arange(2), indexing="ij")
    window = state + bit * states
    best = -np.inf
    for first in range(states):
        value = np.full(states, -np.inf)
        value[first] = 0.0
        for table in tables:
            reached = np.full(states, -np.inf)
            np.maximum.at(reached, window >> 1, value[:, None] + table[window])
            value = reached
        best = max(best, value[first])
    return float(best)


def few(rng: np.random.Generator, important: int = 6) -> Drawn:
    """A random table over six bits; the other bits add a hundredth of its spread."""
    chosen, table = rng.permutation(BITS)[:important], rng.normal(size=2**important)
    others = np.setdiff1d(np.arange(BITS), chosen)
    effects = rng.normal(size=len(others))
    effects *= 0.01 * table.std() / np.linalg.norm(effects)
    powers = 2 ** np.arange(important)

    def value(x: Array) -> Array:
        return table[x[:, chosen].astype(int) @ powers] + (1 - 2 * x[:, others]) @ effects

    return SearchSpace(LAYERS, SLOTS), value, float(table.max() + np.abs(effects).sum())


def ackley(rng: np.random.Generator) -> Drawn:
    """Ackley's function on the corners of a cube: 20 exp(-0.2 √(h/d)) - 20, h bits away from a random design.

    Its cosine term is the same at all corners.
    """
    # The second draw: the first may be a proposal of random search, whose generators are seeded alike.
    best = rng.integers(0, 2, (2, BITS))[1]

    def value(x: Array) -> Array:
        return 20 * np.exp(-0.2 * np.sqrt((x != best).mean(1))) - 20

    return SearchSpace(LAYERS, SLOTS), value, 0.0


def labs(rng: np.random.Generator) -> Drawn:
    """Merit factor d² / 2E of a sequence s of ±1, E = Σ_k (Σ_i s_i s_{i+k})²; 82 is the least E for 36 bits.

    Golay (1977); the optimum from Mertens (1996).
    """

    def value(x: Array) -> Array:
        s = 1 - 2 * x
        energy = sum((s[:, :-k] * s[:, k:]).sum(1) ** 2 for k in range(1, BITS))
        return BITS**2 / (2 * energy)

    return SearchSpace(LAYERS, SLOTS), value, BITS**2 / (2 * 82)


def contamination(rng: np.random.Generator, scenarios: int = 100) -> Drawn:
    """Minus the cost of prevention (1 a stage) and of stages above the limit of 0.1 in more than 5 % of scenarios.

    Hu, Hu, Xu, Wang, Cao (2010); parameters as in Oh et al. (2019), "Combinatorial Bayesian Optimization".
    """
    initial = rng.beta(1, 30, scenarios)
    growth = rng.beta(1, 17 / 3, (BITS, scenarios))
    removal = rng.beta(1, 3 / 7, (BITS, scenarios))

    def value(x: Array) -> Array:
        level = np.broadcast_to(initial, (len(x), scenarios))
        cost = x.sum(1)
        for stage in range(BITS):
            prevented = x[:, stage, None]
            level = growth[stage] * (1 - prevented) * (1 - level) + (1 - removal[stage] * prevented) * level
            cost = cost - ((level < 0.1).mean(1) - 0.95)
        return -cost

    return SearchSpace(LAYERS, SLOTS), value, _best_known(value, rng)


def _best_known(value: Callable[[Array], Array], rng: np.random.Generator, starts: int = 30) -> float:
    """The best of many ascents with all single and double flips."""
    single = np.eye(BITS)
    double = np.array([single[i] + single[j] for i, j in itertools.combinations(range(BITS), 2)])
    flips = np.concatenate([single, double])
    best = -np.inf
    for x in rng.integers(0, 2, (starts, BITS)).astype(np.float64):
        current = value(x[None])[0]
        while True:
            near = np.abs(x - flips)
            values = value(near)
            if values.max() <= current + 1e-12:
                break
            x, current = near[values.argmax()], values.max()
        best = max(best, current)
    return float(best)
