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

IntArray = NDArray[np.int64]

PROMPT = "Give the ID of the item described by:"
"""What an alignment stream starts with (Section 2.2.2)."""


@dataclass(frozen=True)
class Segments:
    """A division of all rows into runs of neighbours, sorted by length.

    Segments of one length form a bucket, so that attention inside them needs neither padding nor a mask.
    """

    rows_t: Tensor
    """[T] all rows, bucket by bucket."""
    order_t: Tensor
    """[T] the inverse permutation: for each row, its place in `rows_t`."""
    shapes: list[tuple[int, int]]
    """Segments and length (n, ℓ) of each bucket."""
    stream_n: Tensor
    """[segments] the stream that each segment belongs to, bucket by bucket."""


@dataclass(frozen=True)
class PackedStreams:
    """The model's input."""

    token_ids_t: Tensor
    """[T] vocabulary ids; rows of special tokens hold 0."""
    special_rows: Tensor
    """[P] rows of [SEQ] and [ALIGN]."""
    special_kinds: Tensor
    """[P] 0 for [SEQ], 1 for [ALIGN]."""
    positions_t: Tensor
    """[T] position in the token's own stream, from 0."""
    streams: Segments
    """The streams themselves, for the causal mask."""
    spans: Segments
    """The spans, for the context mask."""
    users: Tensor
    """User of each sequence stream; the sequence streams come first. -1 for a user that was not trained on."""
    items: Tensor
    """Item of each alignment stream; they follow the sequence streams."""
    readout_r: Tensor
    """[R] rows to read: [SEQ] rows in stream order, then [ALIGN] rows."""

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

    def stream_tokens(self, items: IntArray) -> int:
        """Tokens of the sequence stream of these items."""
        return int(self.lengths[items].sum()) + len(items)

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
        n_sequences, n_align = len(sequence_lengths), len(align_items)
        # Spans in stream order; the alignment streams have two each: prompt, item.
        align_starts = np.stack([np.full(n_align, self._prompt_start), self._starts[align_items]], axis=1)
        align_lengths = np.stack([np.full(n_align, self._prompt_length), self.lengths[align_items] + 1], axis=1)
        starts = np.concatenate([self._starts[sequence_items], align_starts.ravel()])
        lengths = np.concatenate([self.lengths[sequence_items] + 1, align_lengths.ravel()])
        stream = np.concatenate(
            [
                np.repeat(np.arange(n_sequences), sequence_lengths),
                np.repeat(np.arange(n_sequences, n_sequences + n_align), 2),
            ]
        )
        first_row = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.arange(first_row[-1])
        pool_rows = rows + np.repeat(starts - first_row[:-1], lengths)
        stream_lengths = np.bincount(stream, weights=lengths, minlength=n_sequences + n_align).astype(np.int64)
        stream_first = np.concatenate([[0], np.cumsum(stream_lengths)])[:-1]
        sequence_ends = first_row[1 : len(sequence_items) + 1] - 1
        align_ends = first_row[1:][len(sequence_items) + 1 :: 2] - 1
        special = np.concatenate([sequence_ends, align_ends])
        kinds = np.repeat([0, 1], [len(sequence_ends), n_align])
        read = sequence_ends[np.cumsum(sequence_lengths) - 1] if last_only else sequence_ends
        return PackedStreams(
            token_ids_t=torch.from_numpy(self._pool[pool_rows]),
            special_rows=torch.from_numpy(special),
            special_kinds=torch.from_numpy(kinds),
            positions_t=torch.from_numpy(rows - np.repeat(stream_first, stream_lengths)),
            streams=_segments(stream_first, stream_lengths, np.arange(n_sequences + n_align)),
            spans=_segments(first_row[:-1], lengths, stream),
            users=torch.from_numpy(np.asarray(users, dtype=np.int64)),
            items=torch.from_numpy(np.asarray(align_items, dtype=np.int64)),
            readout_r=torch.from_numpy(np.concatenate([read, align_ends])),
        )


def _segments(first_row: IntArray, lengths: IntArray, stream: IntArray) -> Segments:
    by_length = np.argsort(lengths, kind="stable")
    distinct, counts = np.unique(lengths, return_counts=True)
    sizes = lengths[by_length]
    ends = np.cumsum(sizes)
    rows = np.repeat(first_row[by_length] - (ends - sizes), sizes) + np.arange(len(lengths) and int(ends[-1]))
    order = np.empty_like(rows)
    order[rows] = np.arange(len(rows))
    return Segments(
        rows_t=torch.from_numpy(rows),
        order_t=torch.from_numpy(order),
        shapes=[(int(count), int(length)) for count, length in zip(counts, distinct, strict=True) if length],
        stream_n=torch.from_numpy(stream[by_length][sizes > 0]),
    )
