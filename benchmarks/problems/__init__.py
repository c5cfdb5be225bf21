"""Search problems: synthetic ones over 36 bits (12 layers × 3 slots) whose optimum is known, and measured ones.

A problem is drawn from a seed. `Problem.score` puts the mean of random designs at 0 and the optimum at 1; noise is
given as a share of the spread (standard deviation) over random designs.

smooth          main effects smooth over depth (a Gaussian process per slot, length 3 layers), and products of bits in
                the same or adjacent layers with random coefficients and half their variance;
                optimum by dynamic programming over layers
smooth_weights  the same; the level of each of three loss weights (4, 4 and 5 levels) moves the main effects of its slot
                as much as they vary, and has a smooth effect of its own; optimum as above for every setting
rough           as smooth, with independent main effects
nk              NK landscape, K = 3: each bit and the next three index a random table; dynamic programming on a ring
contamination   contamination control (Hu et al. 2010): 36 stages, prevention costs, 100 fixed scenarios;
                best known by many ascents with single and double flips
ackley          Ackley's function of the distance to a random design, which is the optimum
labs            merit factor of the sequence of ±1 (low autocorrelation), whose optimum is known; no draw changes it
few             six of the bits index a random table, all others together a hundredth of its spread; enumeration
landscape_*     validation MRR over architectures as measured, with the noise that trainings had (docs/landscape.md)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from darec_search.space import Point, SearchSpace
from problems import chains, landscapes, tables

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """One drawn problem; larger is better.

    Args:
        space: the designs.
        value: [m, D] encoded points to [m] noiseless values.
        optimum: the largest value.
        noise: standard deviation of an evaluation, where it is the problem's own.
        stderr: standard error of `value`, where it was measured.
    """

    space: SearchSpace
    value: Callable[[Array], Array]
    optimum: float
    noise: float | None = None
    stderr: float = 0.0
    mean: float = field(init=False)
    spread: float = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(12345)
        levels = [len(levels) for levels in self.space.weights.values()]
        bits = rng.integers(0, 2, (20_000, self.space.bits))
        drawn = np.concatenate([bits, rng.integers(0, np.array(levels, dtype=int), (20_000, len(levels)))], axis=1)
        values = self.value(drawn.astype(np.float64))
        object.__setattr__(self, "mean", float(values.mean()))
        object.__setattr__(self, "spread", float(values.std()))

    def at(self, point: Point) -> float:
        """Noiseless value of a point."""
        return float(self.value(self.space.encode(point)[None])[0])

    def score(self, point: Point) -> float:
        """0 for the mean of random designs, 1 for the optimum."""
        return (self.at(point) - self.mean) / (self.optimum - self.mean)


def draw(name: str, seed: int) -> Problem:
    """The problem `name`, drawn from `seed`."""
    return Problem(*PROBLEMS[name](np.random.default_rng([seed, list(PROBLEMS).index(name)])))


# The place of a problem is part of its seed: add new ones at the end.
PROBLEMS: Mapping[str, Callable[[np.random.Generator], chains.Drawn | landscapes.Measured]] = {
    "contamination": tables.contamination,
    "few": tables.few,
    "nk": tables.nk,
    "rough": chains.rough,
    "smooth": chains.smooth,
    "smooth_weights": chains.smooth_weights,
    "ackley": tables.ackley,
    "labs": tables.labs,
    "landscape_synthetic": landscapes.synthetic,
    "landscape_scientific": landscapes.scientific,
}
