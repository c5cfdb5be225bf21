"""Rank correlations of few pairs, and what they allow to say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from darec_search.audit import advice
from darec_search.rank_agreement import agreement

pairs = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=10)


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_only_the_order_counts(drawn):
    one, other = (np.array(scores, dtype=float) for scores in zip(*drawn, strict=True))
    first, second = agreement(one, other), agreement(np.exp(one), other**3)
    assert first.spearman == pytest.approx(second.spearman)
    assert first.p_value == pytest.approx(second.p_value)
    if first.interval is not None:
        low, high = first.interval
        assert -1 <= low <= first.spearman <= high + 1e-9
        assert high <= 1


def test_the_p_value_of_few_pairs_counts_all_orders():
    one, other = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 3.0, 5.0, 4.0]
    as_high = [
        stats.spearmanr(one, order).statistic >= stats.spearmanr(one, other).statistic - 1e-12
        for order in itertools.permutations(other)
    ]
    assert agreement(one, other).p_value == pytest.approx(np.mean(as_high))


def test_the_interval_holds_the_true_correlation_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of a normal pair with correlation 0.6
    hits = []
    for _ in range(200):
        one = rng.normal(size=15)
        low, high = agreement(one, 0.6 * one + 0.8 * rng.normal(size=15)).interval
        hits.append(low <= true <= high)
    assert 0.83 < np.mean(hits) < 0.97


def test_what_cannot_be_told_is_not_told():
    assert agreement([], []).spearman is None
    assert agreement([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).spearman is None
    few = agreement([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (few.spearman, few.interval) == (pytest.approx(1.0), None)
    assert few.p_value == pytest.approx(1 / 6)


def test_the_loss_is_that_of_trusting_the_first_scores():
    assert agreement([1.0, 9.0, 2.0], [0.3, 0.2, 0.5]).loss == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("noise", "count", "says"),
    [(0.05, 12, "0.3 may stay"), (9.0, 3, "next to nothing"), (0.5, 6, "cannot be told yet"), (None, 12, "0.3 to 0.6")],
)
def test_advice_follows_the_evidence(noise, count, says):
    rng = np.random.default_rng(1)
    one = np.linspace(0, 1, count)
    other = -one if noise is None else one + noise * rng.normal(size=count)
    assert says in advice(agreement(one, other), 0.3)
