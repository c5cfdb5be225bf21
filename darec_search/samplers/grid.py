"""Every design of a small space in turn: for loss weights alone, or a handful of layers."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import numpy as np
from pydantic import Field

from darec_search.samplers.base import Options, Sampler
from darec_search.space import Point, SearchSpace
from trainer.architecture import Architecture
from trainer.errors import BadInput


class GridOptions(Options):
    """Options of `grid`."""

    architecture: str | None = Field(
        None, description="Walk the loss weights alone, at this architecture; every architecture when absent."
    )
    limit: Annotated[int, Field(ge=1)] = Field(4096, description="Refuse a grid of more designs than this.")


class GridSampler(Sampler):
    """The designs in an order drawn from the seed, so that a grid that is cut short is a random sample of it.

    After the last one the walk begins again: always the design with the fewest results, of those not under way, so
    that repeats spread evenly. A failure is a result in this. Recommends the best mean value.

    Raises:
        BadInput: if the grid has more designs than `limit`, or the architecture does not fit the space.
    """

    Options = GridOptions

    def __init__(self, space: SearchSpace, seed: int, options: GridOptions) -> None:
        super().__init__(space, seed, options)
        points = _walked(space, options)
        order = np.random.default_rng(seed % 2**64).permutation(len(points))
        self._points = [points[i] for i in order]

    def _propose(self, pending: list[Point], rng: np.random.Generator) -> Point:
        results, running = Counter(self.history.points()), Counter(pending)
        # `min` keeps the first of equals, so the order of the walk decides.
        return min(self._points, key=lambda point: (running[point], results[point]))


def _walked(space: SearchSpace, options: GridOptions) -> list[Point]:
    size = space.size if options.architecture is None else space.size // 2**space.bits
    if size > options.limit:
        raise BadInput(
            f"search.sampler: grid would try {size:,} designs, more than {options.limit:,}; search a smaller space, "
            "fix search.sampler_options.architecture, raise search.sampler_options.limit, or take another sampler"
        )
    if options.architecture is None:
        return list(space.points())
    try:
        bits = Architecture.parse(options.architecture, space.layers).bits
    except ValueError as error:
        raise BadInput(f"search.sampler_options.architecture: {error}") from error
    if not space.weights:
        return [Point(bits)]
    return [Point(bits, point.weights) for point in SearchSpace(0, weights=space.weights).points()]
