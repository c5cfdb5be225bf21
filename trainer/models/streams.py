"""Packed token streams: many sequences and alignment streams in one row of tokens, without padding.

Legend: T tokens of all streams, S streams, N spans (an item's tokens with its [SEQ] or [ALIGN]; a prompt is a span of
its own), R readout rows. A sequence stream is `T_1 [SEQ] … T_n [SEQ]`, an alignment stream `Prompt T_i [ALIGN]`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.models.masks import IntArray, Masks, Runs, inverse, masks, starts

PROMPT = "Give the ID of the item described by:"
"""What an alignment stream starts with (Section 2.2.2)."""


@dataclass(frozen=True)
class PackedStreams:
    """The model's input. The streams lie in rising length, the sequence and the alignment streams mixed."""

    token_ids_t: Tensor
    """[T] vocabulary ids; rows of special tokens hold 0."""
    special_rows: Tensor
    """[P] rows of [SEQ] and [ALIGN]."""
    special_kinds: Tensor
    """[P] 0 for [SEQ], 1 for [ALIGN]."""
    positions_t: Tensor
    """[T] position in the token's own stream, from 0."""
    every_row: Masks
    """The masks whose queries are all rows."""
    read_rows_only: Masks
    """The masks whose queries are `read_rows_r`: the last layer's."""
    users: Tensor
    """User of each sequence stream, streams 0 … U − 1. -1 for a user that was not trained on."""
    all_users_known: bool
    """No user is -1."""
    items: Tensor
    """Item of each alignment stream, streams U …"""
    read_rows_r: Tensor
    """[R] rows to read, rising."""
    read_places_r: Tensor
    """[R] places in `read_rows_r`, in the order of the model's output: [SEQ] rows as they were given, then [ALIGN]."""

    def to(self, device: torch.device | str) -> PackedStreams:
        """The same streams with every tensor on another device."""
        return _moved(self, device)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [_moved(part, device) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value


class StreamPacker:
    """Packs items' tokens into streams.

    Args:
        values: token ids of all items' sentences, one after the other.
        offsets: [items + 1] where each item's tokens start in `values`.
        prompt: token ids of the alignment prompt.
    """

    def __init__(self, values: NDArray[np.int32], offsets: IntArray, prompt: list[int]) -> None:
        self.lengths = np.diff(offsets).astype(np.int64)
        # One pool of tokens: every item followed by one row for its special token, then the prompt.
        self._starts = offsets[:-1].astype(np.int64) + np.arange(len(self.lengths))
        pool = np.zeros(len(values) + len(self.lengths), dtype=np.int64)
        keep = np.ones(len(pool), dtype=bool)
        keep[self._starts + self.lengths] = False
        pool[keep] = values
        self._prompt_start, self._prompt_length = len(pool), len(prompt)
        self._pool = np.concatenate([pool, np.asarray(prompt, dtype=np.int64)])

    def padded(self) -> tuple[IntArray, IntArray]:
        """Token ids of every item, [items, longest], filled with 0 behind its own; and how many are its own."""
        slots = np.arange(self.lengths.max(initial=0))
        own = slots < self.lengths[:, None]
        tokens = np.where(own, self._pool[np.where(own, self._starts[:, None] + slots, 0)], 0)
        return tokens.astype(np.int64), self.lengths

    def pack(
        self,
        sequence_items: IntArray,
        sequence_lengths: IntArray,
        users: IntArray,
        align_items: IntArray,
        *,
        last_only: bool = False,
    ) -> PackedStreams:
        """Pack sequence streams and alignment streams, in this order.

        Args:
            sequence_items: items of all sequences, one after the other, oldest first.
            sequence_lengths: [users] items of each sequence, at least one each.
            users: [users] user of each sequence, -1 for one that was not trained on.
            align_items: items of the alignment streams.
            last_only: read the last [SEQ] of each sequence only (inference).
        """
        spans = self._spans(sequence_items, sequence_lengths, align_items)
        layout = _lay_out(spans)
        rows = np.arange(layout.first_rows[-1])
        laid = layout.spans
        pool_rows = rows + np.repeat(spans.starts[laid] - layout.first_rows[:-1], spans.lengths[laid])
        sequence_ends = layout.ends[: len(sequence_items)]
        align_ends = layout.ends[len(sequence_items) + 1 :: 2]
        last = starts(sequence_lengths)[1:] - 1
        read = np.concatenate([sequence_ends[last] if last_only else sequence_ends, align_ends])
        read_rows = np.sort(read)
        every_row, read_rows_only = (masks(layout.stream_runs, layout.span_runs, asked) for asked in (rows, read_rows))
        stream_starts = starts(layout.stream_runs.lengths)[layout.stream_runs.of_row]
        return PackedStreams(
            token_ids_t=torch.from_numpy(self._pool[pool_rows]),
            special_rows=torch.from_numpy(np.concatenate([sequence_ends, align_ends])),
            special_kinds=torch.from_numpy(np.repeat([0, 1], [len(sequence_ends), len(align_ends)])),
            positions_t=torch.from_numpy(rows - stream_starts),
            every_row=every_row,
            read_rows_only=read_rows_only,
            users=torch.from_numpy(np.asarray(users, dtype=np.int64)),
            all_users_known=bool((np.asarray(users) >= 0).all()),
            items=torch.from_numpy(np.asarray(align_items, dtype=np.int64)),
            read_rows_r=torch.from_numpy(read_rows),
            read_places_r=torch.from_numpy(np.searchsorted(read_rows, read)),
        )

    def _spans(self, sequence_items: IntArray, sequence_lengths: IntArray, align_items: IntArray) -> _Spans:
        """One span an item of a sequence; two an alignment stream, prompt and item."""
        n_sequences, n_align = len(sequence_lengths), len(align_items)
        align_starts = np.stack([np.full(n_align, self._prompt_start), self._starts[align_items]], axis=1)
        align_lengths = np.stack([np.full(n_align, self._prompt_length), self.lengths[align_items] + 1], axis=1)
        sequences = np.repeat(np.arange(n_sequences), sequence_lengths)
        alignments = np.repeat(np.arange(n_sequences, n_sequences + n_align), 2)
        return _Spans(
            starts=np.concatenate([self._starts[sequence_items], align_starts.ravel()]),
            lengths=np.concatenate([self.lengths[sequence_items] + 1, align_lengths.ravel()]),
            streams=np.concatenate([sequences, alignments]),
        )


@dataclass(frozen=True)
class _Spans:
    """Spans as they are given: [N] place in the pool, tokens, stream."""

    starts: IntArray
    lengths: IntArray
    streams: IntArray


@dataclass(frozen=True)
class _Layout:
    """Where the spans lie, their streams in rising length."""

    spans: IntArray
    """[N] the given spans, in the order in which they lie."""
    first_rows: IntArray
    """[N + 1] first row of each span in that order, and the number of rows."""
    ends: IntArray
    """[N] last row of each given span."""
    stream_runs: Runs
    span_runs: Runs


def _lay_out(spans: _Spans) -> _Layout:
    stream_lengths = np.bincount(spans.streams, weights=spans.lengths).astype(np.int64)
    by_length = np.argsort(stream_lengths, kind="stable")
    laid = np.argsort(inverse(by_length)[spans.streams], kind="stable")
    first_rows = starts(spans.lengths[laid])
    return _Layout(
        spans=laid,
        first_rows=first_rows,
        ends=(first_rows[1:] - 1)[inverse(laid)],
        stream_runs=Runs.of(stream_lengths[by_length], by_length),
        span_runs=Runs.of(spans.lengths[laid], spans.streams[laid]),
    )
