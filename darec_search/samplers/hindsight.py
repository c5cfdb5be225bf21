"""Looking back on a search: what it could believe as results came in, and what random search would have found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from darec_search.samplers.base import LEVEL, Observation
from darec_search.samplers.effects import Effect
from darec_search.samplers.proposer import Proposer
from darec_search.space import Point, SearchSpace

_POOL = 300
"""Random designs of which a random search takes its own."""
_SEARCHES = 400


def believed(space: SearchSpace, observations: Sequence[Observation], counts: Sequence[int]) -> list[Effect]:
    """Value of the design that the surrogate recommends after so many results, as it was believed then.

    Args:
        space: the designs.
        observations: in the order in which they came.
        counts: numbers of results, each at least 1.
    """
    found = []
    for count in counts:
        best = Proposer(space).recommend(observations[:count], 1)[0]
        low, high = (best.mean if end is None else end for end in (best.low, best.high))
        found.append(Effect(best.mean, low, high))
    return found


def random_search(
    space: SearchSpace, observations: Sequence[Observation], length: int, weights: Sequence[Point], seed: int = 0
) -> list[tuple[float, float, float]]:
    """Best value so far of random searches, as far as the surrogate of all results can tell.

    Each of 400 searches draws its own function from the posterior, architectures uniformly and loss weights from
    `weights`, and sees their values with noise.

    Args:
        space: the designs.
        observations: results, at least one.
        length: trials of a random search.
        weights: points whose loss weights are as likely as each other.
        seed: of the draws.

    Returns:
        after each of `length` trials the 5 %, 50 % and 95 % quantile.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    drawn = [Point(space.sample(rng).bits, weights[int(rng.integers(len(weights)))].weights) for _ in range(_POOL)]
    proposer = Proposer(space)
    values = proposer.model(observations).draws(proposer.encode(drawn), _SEARCHES, generator).numpy()
    order = np.stack([rng.choice(_POOL, length, replace=length > _POOL) for _ in range(_SEARCHES)])
    best = np.maximum.accumulate(np.take_along_axis(values, order, axis=1), axis=1)
    low, middle, high = np.quantile(best, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], axis=0)
    return list(zip(low.tolist(), middle.tolist(), high.tolist(), strict=True))
