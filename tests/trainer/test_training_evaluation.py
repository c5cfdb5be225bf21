"""The ranking of held-out items, against one history at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from trainer.config import ModelConfig
from trainer.data.ragged import Ragged
from trainer.metrics import ranks
from trainer.models.backbones.opt import OPTBackbone
from trainer.models.darec import DARec
from trainer.models.streams import StreamPacker
from trainer.training import evaluation
from trainer.training.evaluation import plan_chunks, rank_users, read_histories
from trainer.training.precision import autocast
from trainer.training.workers import Workers

ITEMS, USERS, MAX_ITEMS = 23, 17, 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = ModelConfig.model_validate({"adapters": {"bottleneck": 4}, "collaborative": {"dimension": 4}})
    model = DARec(OPTBackbone(tiny_model("opt")), config, USERS, ITEMS).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def packer():
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 6, ITEMS)
    tokens = rng.integers(2, 300, lengths.sum()).astype(np.int32)
    return StreamPacker(tokens, np.concatenate([[0], np.cumsum(lengths)]), [3, 4])


@pytest.fixture(scope="module")
def shop():
    rng = np.random.default_rng(3)
    histories = Ragged.from_rows([rng.integers(0, ITEMS, rng.integers(1, 9)) for _ in range(USERS)])
    return histories, rng.integers(0, ITEMS, USERS).astype(np.int32)


def dense_scores(model, packer, histories, users):
    """All scores of all users, one history at a time."""
    rows = []
    for history, user in zip(histories, users, strict=True):
        items = history[-MAX_ITEMS:].astype(np.int64)
        streams = packer.pack(items, np.array([len(items)]), np.array([user]), np.empty(0, np.int64), last_only=True)
        rows.append(model.item_head(model(streams)).detach())
    return torch.cat(rows)


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
@pytest.mark.parametrize("together", [1, 5, 1000])
@pytest.mark.parametrize("known", [True, False])
def test_everyone_is_ranked_as_if_alone(model, packer, shop, monkeypatch, tokens, together, known):
    monkeypatch.setattr(evaluation, "_token_budget", lambda device: tokens)
    monkeypatch.setattr(evaluation, "_USERS_RANKED_TOGETHER", together)
    histories, targets = shop
    users = np.arange(USERS) if known else np.full(USERS, -1)
    scores = dense_scores(model, packer, histories, users)
    found = rank_users(
        model, packer, histories, targets,
        max_items=MAX_ITEMS, device="cpu", workers=Workers(0, 1), users=users, top=3,
    )  # fmt: skip
    assert torch.equal(found.ranks, ranks(scores, torch.from_numpy(targets)))
    assert torch.equal(found.top_items, scores.topk(3, 1).indices)


def test_the_whole_history_is_left_out_where_that_is_asked_for(model, packer, shop):
    histories, targets = shop
    assert histories.lengths.max() > MAX_ITEMS
    scores = dense_scores(model, packer, histories, np.arange(USERS))
    for user, history in enumerate(histories):
        scores[user, [item for item in history.tolist() if item != targets[user]]] = -torch.inf
    how = {"max_items": MAX_ITEMS, "device": "cpu", "workers": Workers(0, 1)}
    found = rank_users(model, packer, histories, targets, **how, exclude_seen=True)
    assert torch.equal(found.ranks, ranks(scores, torch.from_numpy(targets)))


def test_states_come_in_the_order_of_the_histories(model, packer, shop, monkeypatch):
    monkeypatch.setattr(evaluation, "_token_budget", lambda device: 30)
    users = np.full(USERS, -1)
    states = read_histories(model, packer, shop[0], users, max_items=MAX_ITEMS, device="cpu")
    scores = dense_scores(model, packer, shop[0], users)
    torch.testing.assert_close(model.item_head(states), scores)
    assert not states.requires_grad


def test_no_history_gives_no_state(model, packer):
    states = read_histories(
        model, packer, Ragged.from_rows([]), np.empty(0, np.int64), max_items=MAX_ITEMS, device="cpu"
    )
    assert states.shape == (0, 16)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120), st.integers(1, 5))
def test_workers_share_all_streams_in_equally_many_chunks_within_the_budget(sizes, budget, world):
    sizes = np.array(sizes)
    plans = [plan_chunks(sizes, budget, Workers(rank, world)) for rank in range(world)]
    assert len({len(chunks) for _, chunks in plans}) == 1
    for rank, (order, chunks) in enumerate(plans):
        assert sorted(order) == list(range(len(sizes)))
        mine = order[rank::world].tolist()
        share = [int(stream) for chunk in chunks for stream in chunk]
        assert share[: len(mine)] == mine
        assert len(share) - len(mine) <= 1
        assert all(len(chunk) for chunk in chunks)
        assert all(len(chunk) == 1 or sizes[chunk].sum() <= budget for chunk in chunks)


def test_bfloat16_states_are_ranked_by_float32_scores(model, packer, shop):
    histories, targets = shop
    how = {"max_items": MAX_ITEMS, "device": "cpu"}
    with autocast("bfloat16", "cpu"):
        states = read_histories(model, packer, histories, np.arange(USERS), **how)
        found = rank_users(model, packer, histories, targets, **how, workers=Workers(0, 1))
    scores = model.item_head(states).detach()
    assert scores.dtype == torch.float32
    assert torch.equal(found.ranks, ranks(scores, torch.from_numpy(targets)))
