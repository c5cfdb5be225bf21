"""From planned batches to a worker's tensors: its share of each batch, in parts, packed, pinned, copied.

`steps` makes what can be made off the training thread; `to_device` is left for the training thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainer.counting import PriorCounter
from trainer.data.batches import Batch, BatchPlanner, Terms, shard
from trainer.losses import StepInput
from trainer.models.streams import PackedStreams, StreamPacker
from trainer.training.prefetch import Prefetcher
from trainer.training.workers import Workers

_DEPTH = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """What one worker does in one optimiser step."""

    terms: Terms
    """Of the whole batch, over all workers."""
    parts: list[tuple[Any, float]]
    """The task's own inputs, for DARec `StepInput`. They go through the model one after the other; their losses and
    gradients, times the number, add up. Empty for an idle worker, unless it has to go through the model for the others'
    sake: then with stand-ins that count 0."""


def steps(
    planner: BatchPlanner,
    packer: StreamPacker,
    workers: Workers,
    *,
    epoch: int,
    start: int,
    parts: int,
    pin: bool,
    stand_in: bool,
    counter: PriorCounter | None = None,
) -> Iterator[Step]:
    """A worker's steps of an epoch.

    Args:
        planner: plans the batches.
        packer: packs their streams.
        workers: this worker and how many there are.
        epoch: number of the epoch, from 0.
        start: steps that are done; they are planned again, since the sampler's state is in its draws, but not packed.
        parts: parts of each share.
        pin: page-lock the tensors, so that the copy to a GPU need not wait.
        stand_in: let another part stand in for one without users.
        counter: looks up what a prior counts; none for a model without one.
    """
    for batch in islice(planner.epoch(epoch), start, None):
        # Part p of worker r is share p · world + r: every worker has the same users as without parts.
        count = workers.world * parts
        shares = [shard(batch, part * workers.world + workers.rank, count) for part in range(parts)]
        weighted = [(share, 1.0) for share in shares if len(share.users)]
        if stand_in and len(weighted) < parts:
            weighted += [(shard(batch, 0, count), 0.0)] * (parts - len(weighted))
        yield Step(batch.terms, [(_packed(share, packer, pin, counter), weight) for share, weight in weighted])


def ahead(source: Iterator[T], device: str) -> AbstractContextManager[Iterator[T] | Prefetcher[T]]:
    """Steps or streams made on a thread of their own while a GPU computes; the CPU's cores are the model's already."""
    return Prefetcher(source, _DEPTH) if device.startswith("cuda") else nullcontext(source)


def _packed(share: Batch, packer: StreamPacker, pin: bool, counter: PriorCounter | None) -> StepInput:
    step = to_step_input(share, packer, "cpu", counter)
    return _mapped(step, Tensor.pin_memory) if pin else step


def to_step_input(batch: Batch, packer: StreamPacker, device: str, counter: PriorCounter | None = None) -> StepInput:
    """Pack a batch's streams and turn its arrays into tensors on `device`."""

    def tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(array)

    positives = np.searchsorted(batch.align_items, batch.targets[batch.contrastive_rows])
    step = StepInput(
        streams=packer.pack(batch.inputs, batch.lengths, batch.users, batch.align_items),
        targets=tensor(batch.targets),
        contrastive_rows=tensor(batch.contrastive_rows),
        positives=tensor(positives),
        negatives=tensor(np.searchsorted(batch.align_items, batch.contrastive_negatives)),
        counted=tensor(np.flatnonzero(batch.align_counted)),
        sampled=tensor(batch.sampled),
        cf_users=tensor(batch.cf_users),
        cf_items=tensor(batch.cf_items),
        cf_negatives=tensor(batch.cf_negatives),
        terms=batch.terms,
        seed=batch.seed,
        prior=None if counter is None else counter.of_prefixes(batch.users, batch.lengths, batch.inputs),
    )
    return to_device(step, device)


class Part(Protocol):
    """A part of a step, whatever the task's."""

    @property
    def targets(self) -> Tensor: ...


P = TypeVar("P", bound=Part)


def to_device(step: P, device: str) -> P:
    """The same part on another device; from page-locked memory without waiting for the copy."""
    if step.targets.device == torch.device(device):
        return step
    moved: P = _mapped(step, lambda part: part.to(device, non_blocking=True), device)
    return moved


def _mapped(value: Any, change: Callable[[Tensor], Tensor], device: str | None = None) -> Any:
    """`value` with every tensor in it changed; streams know themselves how to change the device."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, PackedStreams) and device is not None:
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, change, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _mapped(getattr(value, field.name), change, device) for field in fields(value)}
        return type(value)(**parts)
    return value


def pinned(streams: PackedStreams) -> PackedStreams:
    """The same streams in page-locked memory: a copy of them to a GPU waits for nothing."""
    moved: PackedStreams = _mapped(streams, Tensor.pin_memory)
    return moved
