"""The posterior of a promotion: honest about selection, seeds and users; and how re-tests are allotted."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darec_search.winner import (
    LEVEL,
    TIE,
    Belief,
    after_ties,
    believe,
    race,
    scale_of,
    user_covariance,
)


def judge(values, arms, searched=True):
    return believe(values, arms, [searched] * len(arms), scale=1.0)


def run_race(true, noise, *, budget, confidence=0.9, seed=0, searched=True):
    """A race over arms of known value to its end; with the results."""
    drawn = np.random.default_rng(seed).normal(0, noise, (len(true), budget + len(true)))
    results = {}
    options = {"budget": budget, "confidence": confidence, "judge": lambda v, a: judge(v, a, searched)}
    while (state := race(len(true), results, **options)).wanted:
        results |= {(arm, at): true[arm] + drawn[arm, at] for arm, at in state.wanted}
    return state, results


tables = st.integers(2, 5).flatmap(
    lambda arms: st.lists(
        st.lists(st.floats(-3, 3, width=32), min_size=arms, max_size=arms), min_size=1, max_size=4
    ).map(lambda rows: np.array(rows).T)
)


@settings(max_examples=20, deadline=None)
@given(values=tables, shift=st.floats(-50, 50), factor=st.floats(0.01, 100))
def test_units_do_not_matter(values, shift, factor):
    arms, searched = range(len(values)), [True] * len(values)
    one = believe(values, arms, searched, scale=2.0)
    other = believe(shift + factor * values, arms, searched, scale=2.0 * factor)
    assert other.means == pytest.approx(shift + factor * one.means, abs=1e-6 * (factor + abs(shift)))
    assert other.interval(0) == pytest.approx(shift + factor * np.array(one.interval(0)), abs=1e-3 * factor)


@settings(max_examples=20, deadline=None)
@given(values=tables)
def test_searched_arms_are_drawn_together_and_keep_their_order(values):
    belief = judge(values, range(len(values)))
    means = values.mean(1)
    assert np.ptp(belief.means) <= np.ptp(means) + 1e-9
    for one in range(len(values)):
        for other in range(len(values)):
            if means[one] > means[other] + 1e-9:
                assert belief.means[one] >= belief.means[other] - 1e-9
        low, high = belief.interval(one)
        assert low <= high


def test_an_arm_that_no_search_chose_is_not_drawn_to_the_others():
    values = np.array([[1.0, 1.1], [0.0, 0.1], [0.1, 0.0], [0.05, 0.1]])
    together = believe(values, range(4), [True] * 4, scale=1.0)
    apart = believe(values, range(4), [False, True, True, True], scale=1.0)
    assert abs(apart.means[0] - 1.05) < 0.01 < 1.05 - together.means[0]


def test_more_seeds_say_more():
    values = np.array([[0.5, 0.7] * 6, [0.4, 0.6] * 6])
    few, many = (judge(values[:, :seeds], (0, 1)).interval(0) for seeds in (2, 12))
    assert many[1] - many[0] < 0.7 * (few[1] - few[0])


def test_seeds_that_raise_all_arms_do_not_blur_their_difference():
    """The same spread over seeds, once common to both arms and once not."""
    up = np.array([0.0, 0.6, -0.6, 0.5, -0.5, 0.1])
    common = judge(np.stack([up, up - 0.2]), (0, 1))
    crossed = judge(np.stack([up, up[::-1] - 0.2]), (0, 1))
    assert common.at_least(0, 1) > crossed.at_least(0, 1) + 0.05


def test_stated_intervals_of_the_picked_arm_hold_its_value_as_often_as_they_say():
    """Selection included: the pick is the best of six by few noisy re-tests, of which the plain mean is optimistic."""
    rng, hits, bias, plain = np.random.default_rng(3), [], [], []
    for seed in range(100):
        true = rng.normal(0, 0.4, 6)
        state, results = run_race(true, 0.5, budget=12, seed=seed)
        pick = state.belief.leader
        column = state.belief.arms.index(pick)
        low, high = state.belief.interval(column)
        hits.append(low <= true[pick] <= high)
        bias.append(state.belief.means[column] - true[pick])
        plain.append(np.mean([value for (arm, _), value in results.items() if arm == pick]) - true[pick])
    assert abs(np.mean(hits) - LEVEL) < 3 * math.sqrt(LEVEL * (1 - LEVEL) / 100)
    assert np.mean(plain) > 0.15
    assert abs(np.mean(bias)) < 0.5 * np.mean(plain)


def test_users_that_are_a_sample_widen_intervals_but_hardly_differences():
    rng = np.random.default_rng(0)
    users = rng.normal(0, 3.0, 400)
    per_user = [users + rng.normal(0, 0.1, (3, 400)) + level for level in (1.0, 0.8)]
    values = np.stack([metrics.mean(1) for metrics in per_user])
    covariance = user_covariance(per_user, 400)
    assert covariance == pytest.approx(np.full((2, 2), 9.0 / 400), rel=0.25)
    without, with_users = (believe(values, (0, 1), [False] * 2, 1.0, given) for given in (None, covariance))
    assert np.ptp(with_users.interval(0)) == pytest.approx(2 * 1.645 * 0.15, rel=0.25)
    assert np.ptp(with_users.interval(0)) > 3 * np.ptp(without.interval(0))
    assert with_users.at_least(0, 1) == pytest.approx(without.at_least(0, 1), abs=0.02)


def test_what_seeds_do_to_single_users_is_not_taken_for_their_being_a_sample():
    rng = np.random.default_rng(1)
    users = rng.normal(0, 0.5, 5000)
    per_user = [users + rng.normal(0, 2.0, (2, 5000)) for _ in range(3)]
    assert np.diag(user_covariance(per_user, 5000)) == pytest.approx(0.25 / 5000, rel=0.35)


def test_the_scale_is_no_less_than_what_results_vary_by():
    rng = np.random.default_rng(2)
    below = [scale_of(rng.normal(7.0, 2.0, 12)) < 2.0 for _ in range(400)]
    assert np.mean(below) == pytest.approx(0.1, abs=0.05)
    assert scale_of([0.3]) == scale_of([0.3, 0.3]) == pytest.approx(0.3)
    assert scale_of([0.0]) > 0


@settings(max_examples=25, deadline=None)
@given(arms=st.integers(1, 9), budget=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_race_keeps_to_its_budget_and_halves(arms, budget, seed):
    true = np.linspace(0, 1, arms)
    state, results = run_race(true, 0.7, budget=budget, confidence=0.999, seed=seed)
    counts = np.bincount([arm for arm, _ in state.asked], minlength=arms)
    assert state.spent == len(results) == len(set(state.asked)) <= max(budget, arms)
    assert counts.min() >= 1
    if arms > 2 and budget >= 3 * arms:
        assert counts.max() > counts.min()
    assert len(state.belief.means) == arms


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_a_race_is_a_function_of_the_results(data):
    """Cut at any boundary and in any order of arrival it goes on as it was."""
    true = np.array([0.0, 0.4, 0.5, 0.9])
    whole, results = run_race(true, 0.5, budget=12)
    options = {"budget": 12, "confidence": 0.9, "judge": judge}
    keys = data.draw(st.permutations(list(results)))
    known = {key: results[key] for key in keys[: data.draw(st.integers(0, len(keys)))]}
    while (state := race(4, known, **options)).wanted:
        known[state.wanted[-1]] = results[state.wanted[-1]]
    assert state.asked == whole.asked
    assert state.belief.means.tolist() == whole.belief.means.tolist()


def test_a_race_ends_when_the_choice_is_clear():
    state, _ = run_race([0.0, 0.1, 1.0], 0.05, budget=60)
    assert state.clear
    assert state.spent <= 30
    assert state.belief.leader == 2


def test_arms_that_always_fail_drop_out():
    results = {}
    while (state := race(3, results, budget=9, confidence=0.9, judge=judge)).wanted:
        results |= {(arm, seed): None if arm == 1 else 0.1 * arm + 0.2 * seed for arm, seed in state.wanted}
    assert state.belief.arms == (0, 2)
    assert sum(arm == 1 for arm, _ in state.asked) == 1
    failed = race(2, {(0, 0): None, (1, 0): None}, budget=2, confidence=0.9, judge=judge)
    assert (failed.wanted, failed.belief) == ([], None)


@pytest.mark.parametrize(("chance", "winner"), [(TIE - 0.05, 7), (TIE + 0.05, 4)])
def test_a_fixed_arm_wins_ties_and_no_other_does(chance, winner):
    """Arm 7 leads; arm 4 is at least as good in a share of the draws, arm 5 in as many."""
    as_good = np.arange(1000) < 1000 * chance
    draws = np.stack([np.where(as_good, 1.1, 0.0), np.where(as_good, 1.2, 0.1), np.ones(1000)], axis=1)
    belief = Belief((4, 5, 7), np.array([0.3, 0.4, 1.0]), draws)
    assert after_ties(belief, fixed=[4]) == winner
    assert after_ties(belief, fixed=[]) == 7


def test_every_arm_needs_a_result():
    with pytest.raises(ValueError, match="every arm needs a result"):
        judge(np.array([[1.0], [np.nan]]), (0, 1))
