"""How well one set of scores orders things as another does, told from few of them. Pure arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.9
FEWEST = 5
"""Fewer pairs have no interval: any order of them may be chance."""
_EXACT = 7
"""Pairs up to which all orders are counted."""
_DRAWN = 10_000


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of n pairs.

    Args:
        n: pairs.
        spearman: Spearman's ρ; None where it is not defined (fewer than two pairs, or all scores of a kind equal).
        kendall: Kendall's τ, likewise.
        interval: 90 % interval of ρ; None for fewer than `FEWEST` pairs.
        p_value: probability of such a ρ or a higher one if the orders had nothing to do with each other.
        loss: by how much the first scores' best lies below the best, in the second scores.
    """

    n: int
    spearman: float | None
    kendall: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    loss: float | None


def agreement(first: Sequence[float], second: Sequence[float]) -> Agreement:
    """How the first scores order the pairs, against the second.

    The interval is Fisher's with the variance of Bonett and Wright (2000), (1 + ρ²/2) / (n - 3); the p-value is that of
    a permutation test, exact up to 7 pairs.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n = len(one)
    loss = float(other.max() - other[one.argmax()]) if n else None
    if n < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return Agreement(n, None, None, None, None, loss)
    rho = float(stats.spearmanr(one, other).statistic)
    tau = float(stats.kendalltau(one, other).statistic)
    return Agreement(n, rho, tau, _interval(rho, n), _p_value(one, other), loss)


def _interval(rho: float, n: int) -> tuple[float, float] | None:
    if n < FEWEST:
        return None
    # A perfect order of n is taken for one that is wrong in a single pair of neighbours, whose error can be told.
    near = 1 - 12 / (n * (n * n - 1))
    centre = math.atanh(min(max(rho, -near), near))
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    return -1.0 if rho < -near else math.tanh(centre - half), 1.0 if rho > near else math.tanh(centre + half)


def _p_value(one: Array, other: Array) -> float:
    first, second = (stats.rankdata(scores) - (len(scores) + 1) / 2 for scores in (one, other))
    if len(one) <= _EXACT:
        orders = np.array(list(itertools.permutations(range(len(one)))))
    else:
        orders = np.tile(np.arange(len(one)), (1 + _DRAWN, 1))
        orders[1:] = np.random.default_rng(0).permuted(orders[1:], axis=1)
    products = second[orders] @ first
    return float((products >= products[0] - 1e-9).mean())
