from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import RunConfig
from trainer.data.batches import Batch, BatchPlanner, shard
from trainer.data.ragged import Ragged

N_ITEMS = 12
HARD = Ragged.from_rows([[(i + 1) % N_ITEMS, (i + 2) % N_ITEMS] if i != 3 else [] for i in range(N_ITEMS)])


def planner(histories, seed=0, batch_size=2, cf_negatives=3, kind=BatchPlanner, **losses) -> BatchPlanner:
    config = RunConfig.model_validate(
        {
            "data": {"path": "x", "max_items": 4},
            "seed": seed,
            "optimization": {"batch_size": batch_size},
            "losses": {"contrastive_negatives": 4, **losses},
        }
    )
    return kind(Ragged.from_rows(histories), N_ITEMS, HARD, config, cf_negatives)


HISTORIES = st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=9), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(histories=HISTORIES, batch_size=st.integers(1, 5), seed=st.integers(0, 3))
def test_an_epoch_sees_every_user_and_every_item_once(histories, batch_size, seed):
    plan = planner(histories, seed, batch_size)
    batches = list(plan.epoch(0))
    assert len(batches) == plan.steps_per_epoch
    users = np.concatenate([batch.users for batch in batches]) if batches else np.array([])
    assert sorted(users) == [user for user, history in enumerate(histories) if len(history) > 1]
    if batches:
        assert set(np.concatenate([batch.align_items for batch in batches])) == set(range(N_ITEMS))
    for batch in batches:
        rows = np.concatenate([[0], np.cumsum(batch.lengths)])
        for place, user in enumerate(batch.users):
            newest = histories[user][-5:]
            assert batch.inputs[rows[place] : rows[place + 1]].tolist() == newest[:-1]
            assert batch.targets[rows[place] : rows[place + 1]].tolist() == newest[1:]


@settings(max_examples=40, deadline=None)
@given(histories=HISTORIES)
def test_contrastive_negatives_are_hard_ones_of_the_target(histories):
    for batch in planner(histories, contrastive_positions=2).epoch(1):
        for row, negatives in zip(batch.contrastive_rows, batch.contrastive_negatives, strict=True):
            assert set(negatives) <= set(HARD[int(batch.targets[row])])
        assert not np.isin(batch.targets[batch.contrastive_rows], [3]).any()
        assert np.isin(batch.contrastive_negatives, batch.align_items).all()


@settings(max_examples=40, deadline=None)
@given(histories=HISTORIES, world=st.integers(1, 4))
def test_shards_divide_users_terms_and_counted_items(histories, world):
    for whole in planner(histories, batch_size=3).epoch(0):
        shares = [shard(whole, rank, world) for rank in range(world)]
        assert sorted(np.concatenate([share.users for share in shares])) == sorted(whole.users)
        assert sum(len(share.targets) for share in shares) == whole.terms.sequence
        assert sum(share.align_counted.sum() for share in shares) == whole.terms.align
        assert sum(len(share.contrastive_rows) for share in shares) == whole.terms.contrastive
        assert sum(len(share.cf_items) for share in shares) == whole.terms.collaborative
        counted = np.concatenate([share.align_items[share.align_counted] for share in shares])
        assert sorted(counted) == whole.align_items.tolist()


class LiteralPlanner(BatchPlanner):
    """All steps' items cut at once, and every user's items in one table."""

    def epoch(self, epoch):
        rng = np.random.default_rng([self._seed, epoch])
        users = rng.permutation(self._users)
        scheduled = np.array_split(rng.permutation(self._n_items), max(self.steps_per_epoch, 1))
        for step in range(self.steps_per_epoch):
            chosen = users[step * self._batch_size : (step + 1) * self._batch_size]
            yield self._batch(chosen, scheduled[step] if self._losses.align > 0 else scheduled[step][:0], rng)

    def _uniform(self, users, items, rng):
        table = {(user, int(item)) for user, history in enumerate(self._train) for item in history}
        drawn = rng.integers(0, self._n_items, (len(users), self._cf_negatives))
        for _ in range(20):
            seen = np.array([[(user, item) in table for item in row] for user, row in zip(users, drawn, strict=True)])
            if not seen.any():
                break
            drawn[seen] = rng.integers(0, self._n_items, int(seen.sum()))
        return drawn


@settings(max_examples=60, deadline=None)
@given(histories=HISTORIES, batch_size=st.integers(1, 5), seed=st.integers(0, 3), align=st.sampled_from([0.0, 0.1]))
def test_batches_are_those_of_the_literal_planner(histories, batch_size, seed, align):
    plan = planner(histories, seed, batch_size, align=align)
    literal = planner(histories, seed, batch_size, kind=LiteralPlanner, align=align)
    for batch, expected in zip(plan.epoch(2), literal.epoch(2), strict=True):
        for field in dataclasses.fields(Batch):
            np.testing.assert_array_equal(getattr(batch, field.name), getattr(expected, field.name))


def test_uniform_negatives_are_not_the_users_items():
    histories = [[0, 1, 2], [3, 4, 5, 6]]
    for batch in planner(histories, batch_size=2, cf_negatives=4).epoch(0):
        for user, negatives in zip(batch.cf_users, batch.cf_negatives, strict=True):
            assert not set(negatives) & set(histories[user])


@pytest.mark.parametrize(
    ("losses", "empty"),
    [
        ({"align": 0.0}, "align_counted"),
        ({"contrastive": 0.0}, "contrastive_rows"),
        ({"collaborative": 0.0}, "cf_items"),
    ],
)
def test_a_weight_of_zero_costs_nothing(losses, empty):
    for batch in planner([[0, 1, 2, 3], [4, 5, 6]], **losses).epoch(0):
        assert not getattr(batch, empty).any()


def test_epochs_differ_and_repeat_themselves():
    plan = planner([[0, 1, 2, 4], [3, 4, 5], [5, 6, 7], [1, 2, 7]])
    first, again, second = (np.concatenate([b.users for b in plan.epoch(e)]).tolist() for e in (0, 0, 5))
    assert first == again
    assert first != second or planner([[0, 1]]).steps_per_epoch == 1


def test_the_sampled_softmax_draws_distinct_items_that_all_workers_share():
    histories = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    plain = list(planner(histories).epoch(0))
    assert all(len(batch.sampled) == 0 for batch in plain)
    drawn = list(planner(histories, sampled_items=5).epoch(0))
    for batch in drawn:
        assert len(set(batch.sampled)) == 5
        assert batch.sampled.min() >= 0
        assert batch.sampled.max() < N_ITEMS
        assert all((shard(batch, rank, 2).sampled == batch.sampled).all() for rank in range(2))
    assert (drawn[0].sampled != drawn[1].sampled).any()
    # More items than there are: the softmax over all of them.
    assert sorted(next(planner(histories, sampled_items=99).epoch(0)).sampled) == list(range(N_ITEMS))
