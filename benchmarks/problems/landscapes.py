"""Validation MRR over architectures as it was measured, with the noise that trainings had (`benchmarks/landscape.py`).

What a design is truly worth is the posterior mean of a Gaussian process over all measured trainings, whose noise is the
measured one: it shrinks what two seeds say towards what similar architectures say, and speaks for the architectures
that were not trained. Every seed has the same problem.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from darec_search.samplers.kernels import StructuredKernels
from darec_search.space import SearchSpace

Array = NDArray[np.float64]
Measured = tuple[SearchSpace, Callable[[Array], Array], float, float]

FOLDER = Path(__file__).resolve().parents[1] / "landscapes"


def synthetic(rng: np.random.Generator) -> Measured:
    """The synthetic catalogue, three DALayers."""
    return _measured("synthetic")


def scientific(rng: np.random.Generator) -> Measured:
    """A dense part of Amazon Scientific, four DALayers."""
    return _measured("scientific")


@cache
def _measured(name: str) -> Measured:
    """Space, true values, the highest of them, and the standard deviation of a training's noise."""
    table = pq.read_table(FOLDER / f"{name}.parquet", columns=["bits", "seed", "mrr"]).to_pandas()
    values = table.groupby(["bits", "seed"])["mrr"].max().unstack()
    bits = np.array([[int(bit) for bit in row] for row in values.index], dtype=np.float64)
    truth, noise = fitted(bits, values.to_numpy())
    space = SearchSpace(bits.shape[1] // 3)

    def value(x: Array) -> Array:
        return truth[(x @ _powers(space.bits)).astype(int)]

    return space, value, float(truth.max()), noise


def fitted(bits: Array, values: Array) -> tuple[Array, float]:
    """Posterior means of all 2^d designs in the order of their binary numbers, and the noise of one training.

    Args:
        bits: [m, d] designs.
        values: [m, S] of every seed.
    """
    space = SearchSpace(bits.shape[1] // 3)
    kernels = StructuredKernels(space)
    everything = np.array([point.bits for point in space.points()], dtype=np.float64)
    noise = float(np.sqrt(values.var(1, ddof=1).mean()))
    means = values.mean(1)
    signal = means.var(ddof=1) - noise**2 / values.shape[1]
    grams = [kernels.gram(torch.from_numpy(x), torch.from_numpy(bits)).mean(0).numpy() for x in (bits, everything)]
    covariance = grams[0] * signal + np.eye(len(bits)) * noise**2 / values.shape[1]
    return means.mean() + signal * grams[1] @ np.linalg.solve(covariance, means - means.mean()), noise


def _powers(bits: int) -> Array:
    return 2.0 ** np.arange(bits)[::-1]
