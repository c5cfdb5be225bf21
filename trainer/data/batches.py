"""Training batches: which users, items and negatives make one optimiser step.

A batch is planned for all workers from (seed, epoch) alone, then each worker takes its share; so several workers see
together what one would see, and an epoch that is resumed repeats itself exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.config import RunConfig
from trainer.data.ragged import Ragged

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Terms:
    """Number of terms of each loss in the whole batch, over all workers."""

    sequence: int
    align: int
    contrastive: int
    collaborative: int


@dataclass(frozen=True)
class Batch:
    """One step. M inputs over all sequences, C contrastive positions, A alignment items, N interactions."""

    users: Ints
    """[B] users."""
    lengths: Ints
    """[B] inputs of each user."""
    inputs: Ints
    """[M] items of the sequence streams, user by user, oldest first."""
    targets: Ints
    """[M] the item that follows each input."""
    contrastive_rows: Ints
    """[C] rows of `inputs` whose [SEQ] state is contrasted."""
    contrastive_negatives: Ints
    """[C, n_cl] hard negatives of the row's target."""
    align_items: Ints
    """[A] distinct items whose [ALIGN] state is needed, in rising order."""
    align_counted: NDArray[np.bool_]
    """[A] whether L_align counts the item here (each item counts on one worker)."""
    sampled: Ints
    """[N] distinct items drawn uniformly as the sampled softmax's rivals; empty for the softmax over all items."""
    cf_users: Ints
    """[N] users of interactions."""
    cf_items: Ints
    """[N] their items."""
    cf_negatives: Ints
    """[N, k] uniform items that the user has not."""
    terms: Terms
    seed: int = 0
    """Of dropout."""


class BatchPlanner:
    """Plans the batches of a run (losses as in Section 2.2; sampling as in docs/darec.md).

    Args:
        train: training part of every user, oldest first.
        n_items: items of the catalogue.
        hard_negatives: N_j of every item.
        config: batch size, loss weights and counts, seed, newest items of a stream.
        cf_negatives: uniform negatives per interaction; 0 leaves L_cf out.
    """

    def __init__(
        self, train: Ragged, n_items: int, hard_negatives: Ragged, config: RunConfig, cf_negatives: int
    ) -> None:
        self._train = train
        self._n_items = n_items
        self._hard = hard_negatives
        self._losses = config.losses
        self._max_items = config.data.max_items
        self._batch_size = config.optimization.batch_size
        self._seed = config.seed
        self._drops = config.model.head_dropout > 0
        self._cf_negatives = cf_negatives if config.losses.collaborative > 0 else 0
        # A user with one training item has no target; the item still reaches the alignment loss.
        self._users = np.flatnonzero(train.lengths >= 2)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return -(-len(self._users) // self._batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, the same for the same seed and number."""
        rng = np.random.default_rng([self._seed, epoch])
        users = rng.permutation(self._users)
        items = rng.permutation(self._n_items)
        if self._losses.align == 0:
            items = items[:0]
        for step in range(self.steps_per_epoch):
            chosen = users[step * self._batch_size : (step + 1) * self._batch_size]
            # Parts whose sizes differ by one at most, the larger ones first.
            size, larger = divmod(len(items), self.steps_per_epoch)
            start = step * size + min(step, larger)
            yield self._batch(chosen, items[start : start + size + (step < larger)], rng)

    def _batch(self, users: Ints, scheduled: Ints, rng: np.random.Generator) -> Batch:
        histories = [self._train[user][-self._max_items - 1 :] for user in users]
        lengths = np.array([len(history) - 1 for history in histories], dtype=np.int64)
        inputs = np.concatenate([history[:-1] for history in histories]).astype(np.int64)
        targets = np.concatenate([history[1:] for history in histories]).astype(np.int64)
        rows, negatives = self._contrast(lengths, targets, rng)
        align_items = np.unique(np.concatenate([scheduled, targets[rows], negatives.ravel()])).astype(np.int64)
        cf_users, cf_items, cf_negatives = self._interactions(users, rng)
        counted = np.full(len(align_items), self._losses.align > 0)
        count = min(self._losses.sampled_items or 0, self._n_items)
        sampled = rng.choice(self._n_items, count, replace=False) if count else np.empty(0, np.int64)
        return Batch(
            users=users,
            lengths=lengths,
            inputs=inputs,
            targets=targets,
            contrastive_rows=rows,
            contrastive_negatives=negatives,
            align_items=align_items,
            align_counted=counted,
            sampled=sampled,
            cf_users=cf_users,
            cf_items=cf_items,
            cf_negatives=cf_negatives,
            terms=Terms(len(targets), int(counted.sum()), len(rows), len(cf_items)),
            seed=int(rng.integers(2**62)) if self._drops else 0,
        )

    def _contrast(self, lengths: Ints, targets: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """n_s rows of each sequence and n_cl hard negatives of each row's target.

        Rows whose target has no hard negative are left out; fewer than n_cl are drawn with repetition.
        """
        count = self._losses.contrastive_negatives
        rows: list[int] = []
        negatives: list[Ints] = []
        if self._losses.contrastive > 0:
            for first, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
                drawn = rng.choice(length, min(self._losses.contrastive_positions, length), replace=False)
                for row in np.sort(first + drawn):
                    hard = self._hard[int(targets[row])]
                    if len(hard):
                        rows.append(int(row))
                        negatives.append(rng.choice(hard, count, replace=len(hard) < count))
        return np.array(rows, dtype=np.int64), np.array(negatives, dtype=np.int64).reshape(len(rows), count)

    def _interactions(self, users: Ints, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        if not self._cf_negatives:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 1), np.int64)
        items = [self._train[user] for user in users]
        cf_users = np.repeat(users, [len(part) for part in items]).astype(np.int64)
        cf_items = np.concatenate(items).astype(np.int64)
        return cf_users, cf_items, self._uniform(cf_users, cf_items, rng)

    def _uniform(self, users: Ints, items: Ints, rng: np.random.Generator) -> Ints:
        """[N, k] items drawn uniformly; those that the user has are drawn again, 20 times at most.

        Args:
            users: [N] users of interactions.
            items: [N] their items, all that these users have.
            rng: draws.
        """
        observed = np.unique(users * self._n_items + items)
        drawn = rng.integers(0, self._n_items, (len(users), self._cf_negatives))
        for _ in range(20):
            keys = users[:, None] * self._n_items + drawn
            seen = observed[np.searchsorted(observed, keys).clip(max=len(observed) - 1)] == keys
            if not seen.any():
                break
            drawn[seen] = rng.integers(0, self._n_items, int(seen.sum()))
        return drawn


def shard(batch: Batch, rank: int, world: int) -> Batch:
    """The share of one worker. The shares' losses, each divided by `terms`, add up to the whole batch's.

    Args:
        batch: the whole batch.
        rank: this worker, from 0.
        world: number of workers.
    """
    if world == 1:
        return batch
    owner_of_user = np.arange(len(batch.users)) % world
    owner_of_row = np.repeat(owner_of_user, batch.lengths)
    contrast_owner = owner_of_row[batch.contrastive_rows]
    own_rows = owner_of_row == rank
    own_contrast = contrast_owner == rank
    # An item is forwarded wherever a contrastive row needs it, and counted by L_align on its own worker alone.
    # Workers beyond the number of users have nothing to do in this step.
    counting_rank = np.arange(len(batch.align_items)) % min(world, len(batch.users))
    needed = np.isin(
        batch.align_items,
        np.concatenate(
            [
                batch.targets[batch.contrastive_rows[own_contrast]],
                batch.contrastive_negatives[own_contrast].ravel(),
                batch.align_items[(counting_rank == rank) & batch.align_counted],
            ]
        ),
    )
    new_row = np.cumsum(own_rows) - 1
    own_cf = np.isin(batch.cf_users, batch.users[owner_of_user == rank])
    return Batch(
        users=batch.users[owner_of_user == rank],
        lengths=batch.lengths[owner_of_user == rank],
        inputs=batch.inputs[own_rows],
        targets=batch.targets[own_rows],
        contrastive_rows=new_row[batch.contrastive_rows[own_contrast]],
        contrastive_negatives=batch.contrastive_negatives[own_contrast],
        align_items=batch.align_items[needed],
        align_counted=(batch.align_counted & (counting_rank == rank))[needed],
        sampled=batch.sampled,
        cf_users=batch.cf_users[own_cf],
        cf_items=batch.cf_items[own_cf],
        cf_negatives=batch.cf_negatives[own_cf],
        terms=batch.terms,
        seed=batch.seed + rank,
    )
