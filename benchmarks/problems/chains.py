"""Objectives that couple adjacent layers only, so that dynamic programming over layers finds the optimum.

Notation: L layers, S slots, z = 1 - 2x in {-1, +1}; a layer's state is one of its 2^S bit patterns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from darec_search.space import SearchSpace

Array = NDArray[np.float64]
Drawn = tuple[SearchSpace, Callable[[Array], Array], float]

LAYERS, SLOTS = 12, 3
LEVELS = {"align": 4, "contrastive": 4, "collaborative": 5}
PATTERNS = np.array(list(itertools.product((1.0, -1.0), repeat=SLOTS)))  # [2^S, S]


def smooth(rng: np.random.Generator) -> Drawn:
    """Main effects smooth over depth, and random products of neighbouring bits."""
    return _chain(_over_depth(rng, 3.0), rng)


def rough(rng: np.random.Generator) -> Drawn:
    """The same without smoothness."""
    return _chain(rng.normal(size=(LAYERS, SLOTS)), rng)


def smooth_weights(rng: np.random.Generator) -> Drawn:
    """Smooth over depth; each of three loss weights moves the main effects of its slot and the level of the whole."""
    fixed, couplings = _over_depth(rng, 3.0), _couplings(rng)
    sizes = list(LEVELS.values())
    moved = [_gaussian_process(size, 1.5, rng, columns=LAYERS) for size in sizes]  # per weight: [levels, L]
    smoother = np.linalg.cholesky(_rbf(LAYERS, 3.0))
    moved = [smoother @ levels.T for levels in moved]  # [L, levels]
    offsets = [_gaussian_process(size, 1.5, rng)[:, 0] for size in sizes]

    def main(setting: tuple[int, ...]) -> Array:
        shift = np.stack([moved[i][:, level] for i, level in enumerate(setting)], axis=1)
        return (fixed + shift) / np.sqrt(2)

    def offset(setting: tuple[int, ...]) -> float:
        return float(2.0 * sum(offsets[i][level] for i, level in enumerate(setting)))

    def value(x: Array) -> Array:
        settings = x[:, LAYERS * SLOTS :].astype(int)
        out = np.empty(len(x))
        for setting in np.unique(settings, axis=0):
            rows = (settings == setting).all(1)
            out[rows] = _value(x[rows], main(tuple(setting)), couplings) + offset(tuple(setting))
        return out

    optimum = max(
        _optimum(main(setting), couplings) + offset(setting) for setting in itertools.product(*map(range, sizes))
    )
    weights = {name: [float(level) for level in range(size)] for name, size in LEVELS.items()}
    return SearchSpace(LAYERS, SLOTS, weights), value, optimum


def _chain(main: Array, rng: np.random.Generator) -> Drawn:
    couplings = _couplings(rng)
    return SearchSpace(LAYERS, SLOTS), lambda x: _value(x, main, couplings), _optimum(main, couplings)


def _couplings(rng: np.random.Generator) -> tuple[Array, Array]:
    """Coefficients of products within [L, S, S] (upper triangle) and across [L-1, S, S] layers.

    Scaled so that products have half the variance over random designs of unit main effects.
    """
    within = np.triu(rng.normal(size=(LAYERS, SLOTS, SLOTS)), 1)
    across = rng.normal(size=(LAYERS - 1, SLOTS, SLOTS))
    scale = np.sqrt(LAYERS * SLOTS / 2 / (np.sum(within**2) + np.sum(across**2)))
    return within * scale, across * scale


def _value(x: Array, main: Array, couplings: tuple[Array, Array]) -> Array:
    z = (1 - 2 * x[:, : LAYERS * SLOTS]).reshape(-1, LAYERS, SLOTS)
    within, across = couplings
    linear = np.einsum("nls,ls->n", z, main)
    same = np.einsum("nls,lst,nlt->n", z, within, z)
    return linear + same + np.einsum("nls,lst,nlt->n", z[:, :-1], across, z[:, 1:])


def _optimum(main: Array, couplings: tuple[Array, Array]) -> float:
    within, across = couplings
    own = main @ PATTERNS.T + np.einsum("ps,lst,pt->lp", PATTERNS, within, PATTERNS)
    best = own[0]
    for layer in range(1, LAYERS):
        between = PATTERNS @ across[layer - 1] @ PATTERNS.T
        best = (best[:, None] + between).max(0) + own[layer]
    return float(best.max())


def _over_depth(rng: np.random.Generator, scale: float) -> Array:
    effects = _gaussian_process(LAYERS, scale, rng, columns=SLOTS)
    return effects * np.sqrt(LAYERS * SLOTS / np.sum(effects**2))


def _gaussian_process(size: int, scale: float, rng: np.random.Generator, columns: int = 1) -> Array:
    return np.linalg.cholesky(_rbf(size, scale)) @ rng.normal(size=(size, columns))


def _rbf(size: int, scale: float) -> Array:
    steps = np.arange(size)
    return np.exp(-((steps[:, None] - steps) ** 2) / (2 * scale**2)) + 1e-8 * np.eye(size)
