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
    """Where attention stays: segments of keys, and the queries that look at them.

    Segments are sorted by their lengths, so that equal ones are neighbours and form a bucket: a dense attention without
    padding. N segments, Q queries, K keys in all. A segment's queries are its rows, or those of them that are read.
    """

    key_rows_k: Tensor | None
    """[K] rows in segment order, a row ≥ T being the collaborative column of stream row − T; None: they lie so."""
    query_rows_q: Tensor | None
    """[Q] queries in segment order; None: they lie so."""
    query_places_q: Tensor | None
    """[Q] the inverse: for each query, its place in segment order."""
    shapes: list[tuple[int, int, int]]
    """Segments, queries and keys of each (n, q, k), bucket by bucket."""
    query_positions_q: Tensor
    """[Q] place of each query's own key in its segment, in segment order."""
    query_starts: Tensor
    """[N + 1] int32, where the queries of each segment start."""
    key_starts: Tensor
    """[N + 1] int32, where the keys of each segment start."""


@dataclass(frozen=True)
class Attention:
    """The segments of both masks (Section 2.3.1)."""

    causal: Segments
    """The streams."""
    context: Segments
    """The spans, each with its stream's collaborative column in front."""
    context_alone: Segments
    """The spans without the column, for models that have none."""


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
    every_row: Attention
    """Attention whose queries are all rows."""
    read_rows_only: Attention
    """Attention whose queries are `read_rows_r`: the last layer's."""
    users: Tensor
    """User of each sequence stream, streams 0 … U − 1. -1 for a user that was not trained on."""
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
        # Spans as given; the alignment streams have two each: prompt, item.
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
        stream_lengths = np.bincount(stream, weights=lengths, minlength=n_sequences + n_align).astype(np.int64)
        by_length = np.argsort(stream_lengths, kind="stable")
        laid = np.argsort(_inverse(by_length)[stream], kind="stable")
        first_row = _starts(lengths[laid])
        rows = np.arange(first_row[-1])
        pool_rows = rows + np.repeat(starts[laid] - first_row[:-1], lengths[laid])
        ends = (first_row[1:] - 1)[_inverse(laid)]
        sequence_ends, align_ends = ends[: len(sequence_items)], ends[len(sequence_items) + 1 :: 2]
        read = np.concatenate(
            [sequence_ends[_starts(sequence_lengths)[1:] - 1] if last_only else sequence_ends, align_ends]
        )
        laid_streams = np.repeat(np.arange(len(by_length)), stream_lengths[by_length])
        row_groups = (
            _Groups(laid_streams, stream_lengths[by_length], by_length),
            _Groups(np.repeat(np.arange(len(laid)), lengths[laid]), lengths[laid], stream[laid]),
        )
        every_row, read_rows_only = (_attention(*row_groups, queries) for queries in (rows, np.sort(read)))
        return PackedStreams(
            token_ids_t=torch.from_numpy(self._pool[pool_rows]),
            special_rows=torch.from_numpy(np.concatenate([sequence_ends, align_ends])),
            special_kinds=torch.from_numpy(np.repeat([0, 1], [len(sequence_ends), n_align])),
            positions_t=torch.from_numpy(rows - _starts(stream_lengths[by_length])[laid_streams]),
            every_row=every_row,
            read_rows_only=read_rows_only,
            users=torch.from_numpy(np.asarray(users, dtype=np.int64)),
            items=torch.from_numpy(np.asarray(align_items, dtype=np.int64)),
            read_rows_r=torch.from_numpy(np.sort(read)),
            read_places_r=torch.from_numpy(np.searchsorted(np.sort(read), read)),
        )


@dataclass(frozen=True)
class _Groups:
    """A division of all rows into runs: [T] run of each row, [runs] length and stream of each run."""

    of_row: IntArray
    lengths: IntArray
    streams: IntArray


def _attention(streams: _Groups, spans: _Groups, queries: IntArray) -> Attention:
    return Attention(
        causal=_segments(streams, queries, with_column=False),
        context=_segments(spans, queries, with_column=True),
        context_alone=_segments(spans, queries, with_column=False),
    )


def _segments(groups: _Groups, queries: IntArray, *, with_column: bool) -> Segments:
    """The segments of the groups that any query (rows, rising) is in."""
    own = groups.of_row[queries]
    counts = np.bincount(own, minlength=len(groups.lengths))
    first_row, first_query = _starts(groups.lengths)[:-1], _starts(counts)[:-1]
    chosen = np.flatnonzero(counts)
    chosen = chosen[np.lexsort((counts[chosen], groups.lengths[chosen]))]
    query_counts, key_counts = counts[chosen], groups.lengths[chosen] + int(with_column)
    query_rows = _ranges(first_query[chosen], query_counts)
    # A column stands before its segment's rows; _ranges fills the rows in behind it.
    key_rows = _ranges(first_row[chosen] - int(with_column), key_counts)
    if with_column:
        key_rows[_starts(key_counts)[:-1]] = len(groups.of_row) + groups.streams[chosen]
    shapes, sizes = np.unique(np.stack([key_counts, query_counts]), axis=1, return_counts=True)
    in_place = bool(np.array_equal(query_rows, np.arange(len(query_rows))))
    keys_in_place = len(key_rows) == len(groups.of_row) and bool(np.array_equal(key_rows, np.arange(len(key_rows))))
    return Segments(
        key_rows_k=None if keys_in_place else torch.from_numpy(key_rows),
        query_rows_q=None if in_place else torch.from_numpy(query_rows),
        query_places_q=None if in_place else torch.from_numpy(_inverse(query_rows)),
        shapes=[(int(n), int(q), int(k)) for n, (k, q) in zip(sizes, shapes.T, strict=True)],
        query_positions_q=torch.from_numpy(queries[query_rows] - np.repeat(first_row[chosen], query_counts)),
        query_starts=torch.from_numpy(_starts(query_counts).astype(np.int32)),
        key_starts=torch.from_numpy(_starts(key_counts).astype(np.int32)),
    )


def _starts(lengths: IntArray) -> IntArray:
    """[n + 1] where runs of these lengths start, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """start, start + 1, … of each run, one run after the other."""
    ends = _starts(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)


def _inverse(permutation: IntArray) -> IntArray:
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    return inverse
