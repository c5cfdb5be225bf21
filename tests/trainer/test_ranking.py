"""Ranks and top lists by blocks of items against those from all scores at once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.data.ragged import Ragged
from trainer.metrics import ranks
from trainer.ranking import ItemScorer, seen_before


def linear(weights, biases):
    head = nn.Linear(len(weights[0]), len(weights))
    head.weight.data, head.bias.data = torch.tensor(weights, dtype=torch.float32), torch.tensor(biases)
    return head


@st.composite
def shops(draw):
    """States, head, targets, held scores and block size; small integers, so that many scores tie exactly."""
    users, items, width = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    numbers = st.integers(-2, 2).map(float)
    broken = st.one_of(numbers, st.sampled_from([math.nan, math.inf, -math.inf]))
    rows = draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=users, max_size=users))
    weights = draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=items, max_size=items))
    biases = draw(st.lists(broken, min_size=items, max_size=items))
    targets = draw(st.lists(st.integers(0, items - 1), min_size=users, max_size=users))
    head = linear(weights, biases)
    scorer = ItemScorer(head, held=draw(st.integers(1, 30)), block_items=draw(st.integers(1, 10)))
    return torch.tensor(rows), np.array(targets, np.int32), head, scorer


@given(shops(), st.integers(0, 12))
def test_blocks_rank_and_list_what_all_scores_at_once_do(shop, k):
    states, targets, head, scorer = shop
    scores = head(states).detach()
    ranked = scorer.rank(states, targets, k)
    assert torch.equal(ranked.ranks, ranks(scores, torch.from_numpy(targets)))
    expected = scores.topk(min(k, scores.shape[1]), 1).values
    for items in (ranked.top_items, scorer.best(states, k)[1]):
        torch.testing.assert_close(scores.gather(1, items), expected, equal_nan=True, rtol=0, atol=0)
        assert all(len(set(row)) == len(row) for row in items.tolist())
    torch.testing.assert_close(scorer.best(states, k)[0], expected, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(scorer.all_scores(states), scores, equal_nan=True, rtol=0, atol=0)


@given(shops())
def test_blocks_give_the_likelihood_that_all_scores_at_once_do(shop):
    states, targets, head, scorer = shop
    assume(torch.isfinite(head.bias).all())
    scores = head(states).detach().double()
    expected = scores.log_softmax(1).gather(1, torch.from_numpy(targets).long()[:, None])[:, 0]
    found = scorer.rank(states, targets, 0, likelihood=True).log_likelihoods
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert scorer.rank(states, targets, 0).log_likelihoods is None


@given(shops(), st.data())
def test_what_was_seen_is_left_out_of_every_block(shop, data):
    states, targets, head, _ = shop
    items = st.lists(st.integers(0, head.out_features - 1), max_size=5)
    histories = Ragged.from_rows(data.draw(st.lists(items, min_size=len(targets), max_size=len(targets))))
    scores = head(states).detach()
    for user, history in enumerate(histories):
        scores[user, [item for item in history.tolist() if item != targets[user]]] = -math.inf
    held, block_items = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 10))
    scorer = ItemScorer(head, held, block_items, seen=seen_before(histories, targets))
    assert torch.equal(scorer.rank(states, targets, 0).ranks, ranks(scores, torch.from_numpy(targets)))
    torch.testing.assert_close(scorer.all_scores(states), scores, equal_nan=True, rtol=0, atol=0)


def test_a_target_that_was_had_before_stays_in_the_ranking():
    seen = seen_before(Ragged.from_rows([[3, 1, 3], [], [2, 2]]), np.array([3, 0, 1]))
    assert [row.tolist() for row in seen] == [[1], [], [2, 2]]


class Largest(TorchDispatchMode):
    """Sees the size of every tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.elements = max(self.elements, tensor.numel())
        return made


def test_scores_are_held_within_the_budget():
    head, states, held = nn.Linear(8, 5000), torch.randn(300, 8), 10_000
    with Largest() as seen:
        seen.known = {head.weight.untyped_storage().data_ptr()}
        ItemScorer(head, held, block_items=700).rank(states, np.arange(300), 5)
    assert 5000 < seen.elements <= held


def test_scores_are_float32_also_where_the_model_computes_in_bfloat16():
    head, states = nn.Linear(64, 500), torch.randn(20, 64)
    exact = ItemScorer.on(head, "cpu").all_scores(states)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(states).dtype == torch.bfloat16
        assert torch.equal(ItemScorer.on(head, "cpu").all_scores(states), exact)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_million_items_fit_the_budget_of_a_device(device):
    scorer = ItemScorer.on(nn.Linear(2, 1_000_000, device="meta"), device)
    assert scorer.block_users >= 1
    assert scorer.block_users * scorer.block_items * 4 <= 2**28
