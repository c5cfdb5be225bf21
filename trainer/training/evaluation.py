"""Ranking the held-out item of every user among all items (Section 3.1.2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.ragged import Ragged
from trainer.metrics import ranks
from trainer.models.darec import DARec
from trainer.models.streams import StreamPacker
from trainer.training.workers import Workers

_TOKENS_PER_CHUNK = 8192


@torch.no_grad()
def score_histories(
    model: DARec,
    packer: StreamPacker,
    histories: list[NDArray[np.int64]],
    users: NDArray[np.int64],
    max_items: int,
    device: str,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Scores of all items after each history, by chunks of bounded size.

    Args:
        model: the model.
        packer: its streams.
        histories: items of each user, oldest first, at least one each; the newest `max_items` are used.
        users: [n] user of each history, -1 for one that was not trained on.
        max_items: newest items that enter a stream.
        device: where the model is.

    Yields:
        Indices into `histories` [k] and scores [k, items].
    """
    cut = [np.asarray(history[-max_items:], dtype=np.int64) for history in histories]
    sizes = np.array([packer.stream_tokens(history) for history in cut], dtype=np.int64)
    order = np.argsort(sizes, kind="stable")
    start = 0
    while start < len(order):
        # Rising lengths: a chunk holds as many streams as fit the budget, at least one.
        within = np.cumsum(sizes[order[start:]]) <= _TOKENS_PER_CHUNK
        chunk = order[start : start + max(int(within.sum()), 1)]
        start += len(chunk)
        lengths = np.array([len(cut[i]) for i in chunk], dtype=np.int64)
        items = np.concatenate([cut[i] for i in chunk])
        streams = packer.pack(items, lengths, users[chunk], np.empty(0, np.int64), last_only=True).to(device)
        yield chunk, model.item_head(model(streams)).float()


def rank_targets(
    model: DARec,
    packer: StreamPacker,
    histories: Ragged | list[NDArray[np.int64]],
    targets: NDArray[np.int32],
    *,
    max_items: int,
    device: str,
    workers: Workers,
    known_users: bool = True,
) -> Tensor:
    """Rank of each user's target among all items, 1 + #higher + ½ #ties; the workers share the users.

    Args:
        model: the model.
        packer: its streams.
        histories: [users] items before the target, oldest first.
        targets: [users] the held-out items.
        max_items: newest items that enter a stream.
        device: where the model is.
        workers: who shares the work.
        known_users: the users are those the model was trained on, in the same order.

    Returns:
        [users] ranks, on the CPU.
    """
    mine = np.arange(workers.rank, len(targets), workers.world)
    users = mine if known_users else np.full(len(mine), -1)
    found = torch.empty(len(mine), dtype=torch.float64)
    chosen = [np.asarray(histories[int(user)], dtype=np.int64) for user in mine]
    for chunk, scores in score_histories(model, packer, chosen, users, max_items, device):
        wanted = torch.from_numpy(targets[mine[chunk]].astype(np.int64)).to(scores.device)
        found[torch.from_numpy(chunk)] = ranks(scores, wanted).double().cpu()
    return workers.gather(found)
