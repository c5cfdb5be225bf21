import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import paired_p_value, per_user_metrics, ranking_metrics, ranks

scores_and_target = st.lists(st.integers(-3, 3), min_size=1, max_size=12).flatmap(
    lambda scores: st.tuples(st.just(scores), st.integers(0, len(scores) - 1))
)


@given(scores_and_target)
def test_rank_is_one_plus_the_higher_plus_half_the_other_equal_ones(case):
    scores, target = case
    expected = 1.0
    for item, score in enumerate(scores):
        if score > scores[target]:
            expected += 1
        elif score == scores[target] and item != target:
            expected += 0.5
    assert ranks(torch.tensor([scores], dtype=torch.float32), torch.tensor([target])).tolist() == [expected]


def test_each_user_has_a_target_of_their_own():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert ranks(scores, torch.tensor([0, 2], dtype=torch.int32)).tolist() == [1, 3]


def test_broken_scores_never_rank_first():
    nan = math.nan
    scores = torch.tensor([[nan, nan, nan], [0.0, nan, 1.0], [nan, 0.0, 1.0]])
    assert ranks(scores, torch.tensor([0, 0, 0])).tolist() == [3, 3, 3]


def test_metrics_are_means_over_users_with_the_first_ten_counted():
    metrics = ranking_metrics(torch.tensor([1.0, 4.0, 10.0, 10.5, 100.0]))
    assert metrics["mrr"] == pytest.approx((1 + 1 / 4 + 1 / 10 + 1 / 10.5 + 1 / 100) / 5)
    assert metrics["recall@10"] == pytest.approx(3 / 5)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / math.log2(5) + 1 / math.log2(11)) / 5)


def test_per_user_metrics_average_to_the_means():
    given_ranks = torch.tensor([1.0, 2.5, 30.0])
    means = {name: float(values.mean()) for name, values in per_user_metrics(given_ranks).items()}
    assert means == pytest.approx(ranking_metrics(given_ranks))


some_ranks = st.lists(st.integers(2, 60).map(lambda twice: twice / 2), min_size=1, max_size=20)


@given(some_ranks, st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_cutoffs_add_to_the_standard_metrics_and_grow_with_k(given_ranks, cutoffs):
    given_ranks = torch.tensor(given_ranks, dtype=torch.float64)
    metrics = ranking_metrics(given_ranks, cutoffs)
    assert metrics.keys() == {"mrr", "recall@10", "ndcg@10"} | {
        f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in cutoffs
    }
    assert ranking_metrics(given_ranks).items() <= metrics.items()
    for name in ("recall", "ndcg", "mrr"):
        values = [metrics[f"{name}@{k}"] for k in sorted(cutoffs)]
        assert values == sorted(values)
        assert ranking_metrics(given_ranks, [10_000])[f"{name}@10000"] >= values[-1]
    assert all(metrics[f"mrr@{k}"] <= metrics["mrr"] + 1e-12 for k in cutoffs)


def test_metrics_at_a_cutoff():
    metrics = ranking_metrics(torch.tensor([1.0, 2.5, 3.0, 7.0]), [3])
    assert metrics["recall@3"] == pytest.approx(3 / 4)
    assert metrics["mrr@3"] == pytest.approx((1 + 1 / 2.5 + 1 / 3) / 4)
    assert metrics["ndcg@3"] == pytest.approx((1 + 1 / math.log2(3.5) + 1 / 2) / 4)


def test_the_paired_test_is_students():
    one, other = torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([0.0, 1.0, 1.0, 3.0])
    difference = one - other
    t = float(difference.mean() / (difference.std() / 2))
    assert t == pytest.approx(1.9868, abs=1e-4)
    # The two-sided tail of Student's t with 3 degrees of freedom in closed form.
    tail = 1 - 2 / math.pi * (math.atan(t / math.sqrt(3)) + t / math.sqrt(3) / (1 + t * t / 3))
    assert paired_p_value(one, other) == pytest.approx(tail)
    assert paired_p_value(one, one) is None
    assert paired_p_value(one[:1], other[:1]) is None


def test_no_users_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        ranking_metrics(torch.empty(0))
