"""Ranking the held-out item of every user among all items (Section 3.1.2).

One forward a user gives the state of the last [SEQ]; the states of many users are then ranked together against the item
head. Everything stays on the device until the end. Streams go in by length, so that those of a chunk fall into few
buckets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.counting import PriorCounter
from trainer.data.ragged import Ragged
from trainer.metrics import ranking_metrics
from trainer.models.darec import DARec
from trainer.models.streams import PackedStreams, StreamPacker
from trainer.ranking import ItemScorer, Ranked, seen_before
from trainer.training.feed import ahead, pinned
from trainer.training.workers import Workers

_USERS_RANKED_TOGETHER = 16_384


def read_histories(
    model: DARec,
    packer: StreamPacker,
    histories: Ragged,
    users: NDArray[np.int64],
    *,
    max_items: int,
    device: str,
    vectors: Tensor | None = None,
) -> Tensor:
    """The state after each history.

    Args:
        model: the model.
        packer: its streams.
        histories: items of each user, oldest first, at least one each.
        users: [n] user of each history, -1 for one that was not trained on.
        max_items: newest items of a history that enter its stream.
        device: where the model is.
        vectors: [n, representation] CF vector of each history's user, in place of those of `users`.

    Returns:
        [n, output] on the device.
    """
    newest = histories.newest(max_items)
    order, chunks = plan_chunks(stream_tokens(packer, newest), _token_budget(device), Workers(0, 1))
    states = torch.empty(len(order), model.item_head.in_features, device=device)
    for chunk, found in zip(chunks, _states(model, packer, newest, users, chunks, device, vectors), strict=True):
        states[torch.from_numpy(chunk).to(device)] = found.float()
    return states


def rank_users(
    model: DARec,
    packer: StreamPacker,
    histories: Ragged,
    targets: NDArray[np.int32],
    *,
    max_items: int,
    device: str,
    workers: Workers,
    users: NDArray[np.int64] | None = None,
    vectors: Tensor | None = None,
    top: int = 0,
    likelihood: bool = False,
    counter: PriorCounter | None = None,
    exclude_seen: bool = False,
) -> Ranked:
    """Rank of each user's target among all items, 1 + #higher + ½ #ties, and the best items; workers share the users.

    Args:
        model: the model.
        packer: its streams.
        histories: [users] items before the target, oldest first, at least one each.
        targets: [users] the held-out items.
        max_items: newest items of a history that enter its stream.
        device: where the model is.
        workers: who shares the work.
        users: [users] each one's number in the training, -1 for one that was not trained on; those of the training in
            their order when absent.
        vectors: [users, representation] CF vector of each user, in place of those of `users`.
        top: best items of each user that are wanted.
        likelihood: log p(target) is wanted too.
        counter: looks up what the model's prior counts, if it has one.
        exclude_seen: leave out the items of the whole history, but for a target that is among them.

    Returns:
        Ranks and top lists of all users, on the CPU.
    """
    newest = histories.newest(max_items)
    order, chunks = plan_chunks(stream_tokens(packer, newest), _token_budget(device), workers)
    users = np.arange(len(order)) if users is None else users
    parts = []
    for group in _groups(chunks):
        states = torch.cat(list(_states(model, packer, newest, users, group, device, vectors)))
        chosen = np.concatenate(group)
        seen = seen_before(histories.take(chosen), targets[chosen]) if exclude_seen else None
        scorer = item_scorer(model, newest.take(chosen), counter, device, seen)
        parts.append(scorer.rank(states, targets[chosen], top, likelihood=likelihood))
    mine = len(order[workers.rank :: workers.world])
    back = torch.from_numpy(np.argsort(order))

    def everyone(parts: list[Tensor]) -> Tensor:
        return workers.gather(torch.cat(parts)[:mine].cpu())[back]

    return Ranked(
        everyone([part.ranks for part in parts]),
        everyone([part.top_items for part in parts]),
        everyone([part.log_likelihoods for part in parts if part.log_likelihoods is not None]) if likelihood else None,
    )


def item_scorer(
    model: DARec, histories: Ragged, counter: PriorCounter | None, device: str, seen: Ragged | None = None
) -> ItemScorer:
    """What scores the states after some histories, the model's prior with it.

    Args:
        model: the model.
        histories: of the states, in their order, cut to what the model reads.
        counter: looks up what the model's prior counts, if it has one.
        device: where the model is.
        seen: items of each history's user that are left out; none when absent.
    """
    prior = model.prior
    with torch.no_grad():
        head = model.scoring_head()
    if prior is None:
        return ItemScorer.on(head, device, seen=seen)
    if counter is None:
        raise ValueError("a model with a prior needs the relations of its items")
    return ItemScorer.on(
        head, device, lambda places: prior(counter.of_histories(histories.take(places)).to(device)), seen
    )


def validation_metrics(ranked: Ranked) -> dict[str, float]:
    """What an evaluation during training reports: means over the users.

    Returns:
        The ranking metrics, and `log_likelihood`, minus the cross-entropy over all items in nats. It moves with every
        item's score, not only with ranks near the top, so it differs less from seed to seed than MRR.
    """
    if ranked.log_likelihoods is None:
        raise ValueError("the ranking was made without likelihoods")
    return {**ranking_metrics(ranked.ranks), "log_likelihood": float(ranked.log_likelihoods.mean())}


@torch.no_grad()
def _states(
    model: DARec,
    packer: StreamPacker,
    histories: Ragged,
    users: NDArray[np.int64],
    chunks: Sequence[NDArray[np.int64]],
    device: str,
    vectors: Tensor | None,
) -> Iterator[Tensor]:
    """[chunk, output] states after the histories of each chunk."""
    on_gpu = device.startswith("cuda")

    def packed() -> Iterator[PackedStreams]:
        for chunk in chunks:
            part = histories.take(chunk)
            items, none = part.values.astype(np.int64), np.empty(0, np.int64)
            streams = packer.pack(items, part.lengths, users[chunk], none, last_only=True)
            yield pinned(streams) if on_gpu else streams

    with ahead(packed(), device) as source:
        for chunk, streams in zip(chunks, source, strict=True):
            own = None if vectors is None else vectors[torch.from_numpy(chunk)].to(device)
            yield model(streams.to(device), own)


def plan_chunks(
    sizes: NDArray[np.int64], budget: int, workers: Workers
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """All streams, the longest first, and this worker's share `order[rank::world]` of them in chunks.

    Every worker has as many chunks, since layers that are sharded over workers are gathered by all of them at once;
    for that a worker whose share is one short has the last of all streams as well.

    Args:
        sizes: [n] tokens of each stream.
        budget: tokens of a chunk at most, unless a single stream is longer.
        workers: who shares the work.

    Returns:
        The order [n], and the indices of each chunk.
    """
    order = np.argsort(-sizes, kind="stable")
    # Rank 0 has the largest of every `world` neighbours, so what fits its chunks fits all workers'.
    ends = np.cumsum(sizes[order[:: workers.world]])
    share = order[workers.rank :: workers.world]
    share = np.append(share, order[-1:]) if len(share) < len(ends) else share
    chunks, start = [], 0
    while start < len(share):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + budget, "right")), start + 1)
        chunks.append(share[start:stop])
        start = stop
    return order, chunks


def stream_tokens(packer: StreamPacker, histories: Ragged) -> NDArray[np.int64]:
    """[n] tokens of each history's stream."""
    ends = np.concatenate([[0], np.cumsum(packer.lengths[histories.values] + 1)])
    return np.diff(ends[histories.offsets])


def _groups(chunks: Sequence[NDArray[np.int64]]) -> Iterator[list[NDArray[np.int64]]]:
    """Neighbouring chunks whose users are ranked together: enough for large products, few enough to be held."""
    group: list[NDArray[np.int64]] = []
    for chunk in chunks:
        group.append(chunk)
        if sum(map(len, group)) >= _USERS_RANKED_TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _token_budget(device: str) -> int:
    """Tokens that go through the model together."""
    # On a CPU, activations of more tokens no longer fit its caches.
    return 65_536 if device.startswith("cuda") else 4096
