"""Random search: the yardstick."""

from __future__ import annotations

import numpy as np

from darec_search.samplers.base import Options, Sampler, unseen
from darec_search.space import Point


class RandomSampler(Sampler):
    """Uniform designs, none twice. Recommends the best mean value."""

    Options = Options

    def _propose(self, pending: list[Point], rng: np.random.Generator) -> Point:
        return unseen(self.space, rng, self.history.points(), pending)
