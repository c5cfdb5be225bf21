"""Validation MRR over architectures as it was measured, with the noise that trainings had (`benchmarks/landscape.py`).

Where every architecture was trained, it is worth the mean of its trainings. Elsewhere what it is worth is the
prediction of a kernel regression over the Hamming distance, chosen by cross-validation: it speaks for the architectures
that were not trained, and knows nothing of our samplers' kernels.

Every seed has the same landscape; it draws for each slot whether 0 and 1 trade places in all layers. Otherwise a
library whose first design is always all 0 would begin at the optimum of `scientific`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from darec_search.space import SearchSpace

Array = NDArray[np.float64]
Measured = tuple[SearchSpace, Callable[[Array], Array], float, float, float]
"""Space, true values, the highest of them, noise of a training, standard error of a measured mean."""

SLOTS = 3
FOLDER = Path(__file__).resolve().parents[1] / "landscapes"


def synthetic(rng: np.random.Generator) -> Measured:
    """The synthetic catalogue, three DALayers."""
    return _drawn("synthetic", rng)


def scientific(rng: np.random.Generator) -> Measured:
    """A dense part of Amazon Scientific, four DALayers."""
    return _drawn("scientific", rng)


def _drawn(name: str, rng: np.random.Generator) -> Measured:
    truth, noise, stderr = _measured(name)
    bits = int(math.log2(len(truth)))
    space = SearchSpace(bits // SLOTS)
    swapped = np.tile(rng.integers(0, 2, SLOTS), space.layers)

    def value(x: Array) -> Array:
        return truth[(np.abs(x - swapped) @ _powers(bits)).astype(int)]

    return space, value, float(truth.max()), noise, stderr


@cache
def _measured(name: str) -> tuple[Array, float, float]:
    """Values of all designs in the order of their binary numbers, noise of a training, standard error of a mean."""
    table = pq.read_table(FOLDER / f"{name}.parquet", columns=["bits", "seed", "mrr"]).to_pandas()
    values = table.groupby(["bits", "seed"])["mrr"].max().unstack()
    bits = np.array([[int(bit) for bit in row] for row in values.index], dtype=np.float64)
    means = values.to_numpy().mean(1)
    noise = float(np.sqrt(values.to_numpy().var(1, ddof=1).mean()))
    complete = len(means) == 2 ** bits.shape[1]
    return means if complete else fitted(bits, means), noise, noise / math.sqrt(values.shape[1])


def fitted(bits: Array, values: Array, folds: int = 10) -> Array:
    """Predictions for all 2^d designs in the order of their binary numbers.

    Kernel ridge regression with exp(-h / s), h bits apart; scale s and ridge by cross-validation.

    Args:
        bits: [m, d] designs.
        values: [m].
        folds: of the cross-validation.
    """
    fold = np.random.default_rng(0).permutation(len(values)) % folds

    def error(scale: float, ridge: float) -> float:
        parts = [
            values[fold == k] - _predict(bits[fold != k], values[fold != k], bits[fold == k], scale, ridge)
            for k in range(folds)
        ]
        return float(np.mean(np.concatenate(parts) ** 2))

    scale, ridge = min(itertools.product((1.0, 2.0, 4.0, 8.0), (0.01, 0.03, 0.1, 0.3, 1.0)), key=lambda c: error(*c))
    everything = np.array(list(itertools.product((0.0, 1.0), repeat=bits.shape[1])))
    return _predict(bits, values, everything, scale, ridge)


def _predict(bits: Array, values: Array, at: Array, scale: float, ridge: float) -> Array:
    gram = np.exp(-_hamming(bits, bits) / scale) + ridge * np.eye(len(bits))
    weights = np.linalg.solve(gram, values - values.mean())
    return np.asarray(values.mean() + np.exp(-_hamming(at, bits) / scale) @ weights, dtype=np.float64)


def _hamming(a: Array, b: Array) -> Array:
    return np.asarray(a @ (1 - b).T + (1 - a) @ b.T)


def _powers(bits: int) -> Array:
    return np.exp2(np.arange(bits, dtype=np.float64)[::-1])
