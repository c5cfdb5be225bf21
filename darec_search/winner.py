"""Which arm is best, and what it is worth, told from a few noisy re-tests. Pure arithmetic: no files, no training.

The value of an arm is its expected objective over seeds and users. A re-test of arm i with seed s gives

    y_is = θ_i + u_i + b_s + e_is

θ_i the value; u_i what these users rather than others do, which no further seed averages out; b_s what arms have in
common under one seed; e_is the rest. Searched arms are a sample of similar designs, θ_i ~ N(μ, τ²) with unknown μ and
τ, so that the best of several means is drawn towards the others by as much as they tell: the winner's curse is in the
model. Fixed and given arms were not chosen by their results; they have a wide prior of their own. The noise σ, τ and
the share of σ² that seeds have in common are integrated over a grid (hierarchical Bayes; Gelman et al., Bayesian Data
Analysis, 3rd ed., chapter 5), and all that is stated comes from the one posterior of all θ.

Re-tests are allotted by successive halving (Karnin, Koren & Somekh, 2013): every arm gets a few seeds, the worse half
goes, and so on until two are left, which get seed by seed until the choice is clear or the budget is spent. `race` is
a function of the results alone, so a promotion that was stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.9
"""Probability that an interval holds the value."""
TIE = 1 / 3
"""A fixed arm ties with the leader if it is at least as good with this probability: odds of less than two to one."""
_DRAWS = 4096
_NOISE = np.geomspace(0.06, 1.0, 12)
"""Standard deviations of a re-test, over the scale."""
_SPREAD = np.geomspace(0.03, 1.0, 10)
"""Standard deviations over the searched arms, over the scale."""
_COMMON = np.array([0.0, 0.5])
"""Shares of the noise that arms have in common under one seed."""
_GRID = np.stack([axis.ravel() for axis in np.meshgrid(_NOISE, _SPREAD, _COMMON, indexing="ij")])
_GRID = _GRID[:, np.hypot(_GRID[0], _GRID[1]) <= 1.0]  # the search's results vary by both, so by either no more
_WIDE = 10.0
"""Standard deviation, over the scale, of what nothing is known of."""


@dataclass(frozen=True)
class Belief:
    """The posterior of some arms' values.

    Args:
        arms: their numbers, in the order of the columns.
        means: [arms] expected values.
        draws: [draws, arms] values drawn jointly.
        users: users whose being a sample is counted in; None if only seeds are.
    """

    arms: tuple[int, ...]
    means: Array
    draws: Array
    users: int | None = None

    @property
    def leader(self) -> int:
        """Number of the arm with the highest expected value."""
        return self.arms[int(self.means.argmax())]

    def interval(self, column: int) -> tuple[float, float]:
        """The central 90 % interval of an arm's value."""
        low, high = np.quantile(self.draws[:, column], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def at_least(self, column: int, other: int) -> float:
        """Probability that an arm is at least as good as another."""
        return float((self.draws[:, column] >= self.draws[:, other]).mean())

    def best_of(self, columns: Sequence[int]) -> float:
        """Probability that the first of some arms is the best of them."""
        return float((self.draws[:, columns].argmax(1) == 0).mean())


def after_ties(belief: Belief, fixed: Collection[int]) -> int:
    """The winning arm: the leader, or the best of the fixed arms that tie with it (`TIE`).

    Args:
        belief: what the re-tests say.
        fixed: numbers of the fixed arms.
    """
    leader = belief.arms.index(belief.leader)
    tied = [
        column
        for column, arm in enumerate(belief.arms)
        if arm in fixed and (column == leader or belief.at_least(column, leader) >= TIE)
    ]
    return belief.arms[max(tied or [leader], key=lambda column: float(belief.means[column]))]


def believe(
    values: Array, arms: Sequence[int], searched: Sequence[bool], scale: float, of_users: Array | None = None
) -> Belief:
    """The posterior of some arms' values.

    Args:
        values: [arms, seeds] results of the re-tests; NaN where there is none. Every arm has at least one.
        arms: [arms] their numbers.
        searched: [arms] whether the search chose them.
        scale: what results in the search varied by at most (`scale_of`): noise and differences are below it.
        of_users: [arms, arms] covariance of the means over users, for these users being a sample; none if absent.

    Raises:
        ValueError: if an arm has no result.
    """
    rows, seeds = np.nonzero(np.isfinite(values))
    if len(set(rows.tolist())) < len(values):
        raise ValueError("every arm needs a result")
    scale = max(scale, _noise(values))
    centre = float(np.mean(values[rows, seeds]))
    found = (values[rows, seeds] - centre) / scale
    noise, spread, common = _GRID
    prior = _prior(spread, np.asarray(searched))
    same_seed, own = (seeds[:, None] == seeds).astype(float), np.eye(len(seeds))
    of_seeds = noise[:, None, None] ** 2 * (own + common[:, None, None] * (same_seed - own))
    means_vary = prior if of_users is None else prior + of_users / scale**2
    factor = np.linalg.cholesky(means_vary[:, rows[:, None], rows] + of_seeds)
    whitened = np.linalg.solve(factor, np.broadcast_to(found[:, None], (len(noise), len(found), 1)))[..., 0]
    log_evidence = -0.5 * (whitened**2).sum(1) - np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
    weights = np.exp(log_evidence - log_evidence.max())
    weights /= weights.sum()
    seen = np.linalg.solve(factor, prior[:, rows, :])  # L⁻¹ Cov(y, θ), [grid, results, arms]
    means = np.einsum("gka,gk->ga", seen, whitened)
    left = prior - np.einsum("gka,gkb->gab", seen, seen)
    drawn = centre + scale * _draw(weights, means, left)
    return Belief(tuple(arms), centre + scale * (weights @ means), drawn)


def _noise(values: Array) -> float:
    """Standard deviation of arms' results over seeds, pooled; 0 where no arm has two."""
    own = [row[np.isfinite(row)] for row in values]
    freedom = sum(len(row) - 1 for row in own)
    squares = sum(float(((row - row.mean()) ** 2).sum()) for row in own)
    return math.sqrt(squares / freedom) if freedom else 0.0


def scale_of(results: Sequence[float]) -> float:
    """Upper 90 % confidence limit of the standard deviation of the search's results, which noise and designs make up.

    Where they do not vary at all, or there is one alone, it is their size.
    """
    spread = float(np.std(results, ddof=1)) if len(results) > 1 else 0.0
    if spread == 0:
        return max(abs(float(results[0])), 1e-12)
    freedom = len(results) - 1
    return spread * math.sqrt(freedom / float(stats.chi2.ppf(1 - LEVEL, freedom)))


def _prior(spread: Array, searched: NDArray[np.bool_]) -> Array:
    """[grid, arms, arms] prior covariance of the values: a common level, and each arm's difference from it."""
    own = np.where(searched, spread[:, None], _WIDE)
    return np.asarray(_WIDE**2 + own[:, :, None] ** 2 * np.eye(len(searched)))


def _draw(weights: Array, means: Array, covariances: Array) -> Array:
    """[draws, arms] from the mixture; always the same ones for the same mixture."""
    rng = np.random.default_rng(0)
    which = np.searchsorted(np.cumsum(weights)[:-1], (np.arange(_DRAWS) + 0.5) / _DRAWS)
    normal = rng.standard_normal((_DRAWS, means.shape[1]))
    used, place = np.unique(which, return_inverse=True)
    roots, axes = np.linalg.eigh(covariances[used])
    factors = axes * np.sqrt(roots.clip(0))[:, None, :]
    return np.asarray(means[which] + np.einsum("dab,db->da", factors[place], normal))


def user_covariance(per_user: Sequence[Array], users: int) -> Array:
    """Covariance of the arms' means over users, as far as it is due to which users there are.

    Args:
        per_user: for each arm [seeds, n] metrics of the same n users.
        users: number of users that the means are over.

    Returns:
        [arms, arms]. What single users vary by from seed to seed is taken out, by the mean over all arms with several.
    """
    covariance = np.atleast_2d(np.cov(np.stack([metrics.mean(0) for metrics in per_user])))
    of_seeds = [_residual(metrics) for metrics in per_user if len(metrics) > 1]
    if of_seeds:
        shares = np.array([1 / len(metrics) for metrics in per_user])
        covariance = covariance - np.mean(of_seeds) * np.diag(shares)
    roots, axes = np.linalg.eigh(covariance)
    return np.asarray((axes * roots.clip(0)) @ axes.T / users)


def _residual(metrics: Array) -> float:
    """Variance of metrics [seeds, users] that neither seed nor user explains."""
    rest = metrics - metrics.mean(1, keepdims=True) - metrics.mean(0) + metrics.mean()
    return float((rest**2).sum() / (rest.shape[0] - 1) / (rest.shape[1] - 1))


Results = Mapping[tuple[int, int], float | None]
"""Value by arm and seed number; None for a re-test that failed."""


@dataclass(frozen=True)
class Race:
    """Where a promotion stands.

    Args:
        asked: (arm, seed number) of all re-tests so far, in order.
        wanted: those of them that have no result yet; none when the race is over.
        belief: what the results say; None before the first round has ended, or if no arm has a result.
        clear: an arm is the best with the stated probability.
    """

    asked: list[tuple[int, int]]
    wanted: list[tuple[int, int]]
    belief: Belief | None
    clear: bool = False
    left_out: int = 0
    """Re-tests that there was no room for, at most."""

    @property
    def spent(self) -> int:
        """Re-tests that have ended."""
        return len(self.asked) - len(self.wanted)


def race(
    arms: int,
    results: Results,
    *,
    budget: int,
    confidence: float,
    judge: Callable[[Array, Sequence[int]], Belief],
    fits: Callable[[Sequence[tuple[int, int]]], int | None] | None = None,
) -> Race:
    """What to run next, as a function of the results so far.

    Args:
        arms: number of competitors.
        results: what has come back.
        budget: re-tests at most; each arm gets one in any case.
        confidence: the race ends when an arm is the best with this probability.
        judge: the posterior for values [arms, seeds] and the numbers of the arms that they belong to.
        fits: how many re-tests of a round there is room for; None for all. One of each arm is made in any case. A round
            cut short is the last one.
    """
    alive, seeds = list(range(arms)), 0
    asked: list[tuple[int, int]] = []
    belief: Belief | None = None
    while count := seeds_each(len(alive), max(budget, arms) - len(asked)):
        whole = [(arm, seed) for seed in range(seeds, seeds + count) for arm in alive]
        room = fits(whole) if fits is not None else None
        turn = whole if room is None else whole[: max(room, 0 if asked else arms)]
        asked += turn
        wanted = [key for key in asked if key not in results]
        if wanted:
            return Race(asked, wanted, belief)
        seeds += count
        values = _table(arms, results, seeds)
        tested = np.flatnonzero(np.isfinite(values).any(1)).tolist()
        if not tested:
            break
        belief = judge(values[tested], tested)
        columns = [tested.index(arm) for arm in alive if arm in tested]
        columns.sort(key=(-belief.means).__getitem__)
        if belief.best_of([*columns, *(set(range(len(tested))) - set(columns))]) >= confidence:
            return Race(asked, [], belief, clear=True)
        if len(turn) < len(whole):
            return Race(asked, [], belief, left_out=max(budget, arms) - len(asked))
        alive = [tested[column] for column in columns[: max(2, math.ceil(len(alive) / 2))]]
        if len(alive) < 2:
            break
    return Race(asked, [], belief)


def seeds_each(arms: int, left: int) -> int:
    """Seeds for each arm in the next round: an equal part of what is left for each halving; one each for two arms."""
    if left < arms:
        return 0
    halvings = math.ceil(math.log2(max(2, arms)))
    return 1 if arms <= 2 else max(1, left // (halvings * arms))


def _table(arms: int, results: Results, seeds: int) -> Array:
    """[arms, seeds] values, NaN where there is none."""
    values = np.full((arms, seeds), np.nan)
    for (arm, seed), value in results.items():
        if seed < seeds and value is not None:
            values[arm, seed] = value
    return values
