"""Where attention stays: the causal and the context mask (Section 2.3.1) as segments of packed rows, without a matrix.

Legend: T rows, N segments, Q queries, K keys in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """Where attention stays: segments of keys, and the queries that look at them.

    Segments are sorted by their lengths, so that equal ones are neighbours and form a bucket: a dense attention without
    padding. A segment's queries are its rows, or those of them that are read.
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
class Masks:
    """Both masks."""

    causal: Segments
    """The streams."""
    context: Segments
    """The spans, each with its stream's collaborative column in front."""
    context_alone: Segments
    """The spans without the column, for models that have none."""


@dataclass(frozen=True)
class Runs:
    """A division of all rows into runs of neighbours: [T] run of each row, [runs] length and stream of each run."""

    of_row: IntArray
    lengths: IntArray
    streams: IntArray

    @classmethod
    def of(cls, lengths: IntArray, streams: IntArray) -> Runs:
        """Runs of these lengths, one after the other."""
        return cls(np.repeat(np.arange(len(lengths)), lengths), lengths, streams)


def masks(streams: Runs, spans: Runs, queries: IntArray) -> Masks:
    """The masks of some queries (rows, rising) over streams and spans."""
    return Masks(
        causal=_segments(streams, queries, with_column=False),
        context=_segments(spans, queries, with_column=True),
        context_alone=_segments(spans, queries, with_column=False),
    )


def _segments(runs: Runs, queries: IntArray, *, with_column: bool) -> Segments:
    """The segments of the runs that any query (rows, rising) is in."""
    own = runs.of_row[queries]
    counts = np.bincount(own, minlength=len(runs.lengths))
    first_row, first_query = starts(runs.lengths)[:-1], starts(counts)[:-1]
    chosen = np.flatnonzero(counts)
    chosen = chosen[np.lexsort((counts[chosen], runs.lengths[chosen]))]
    query_counts, key_counts = counts[chosen], runs.lengths[chosen] + int(with_column)
    query_rows = _ranges(first_query[chosen], query_counts)
    # A column stands before its segment's rows; _ranges fills the rows in behind it.
    key_rows = _ranges(first_row[chosen] - int(with_column), key_counts)
    if with_column:
        key_rows[starts(key_counts)[:-1]] = len(runs.of_row) + runs.streams[chosen]
    shapes, sizes = np.unique(np.stack([key_counts, query_counts]), axis=1, return_counts=True)
    in_place = bool(np.array_equal(query_rows, np.arange(len(query_rows))))
    keys_in_place = len(key_rows) == len(runs.of_row) and bool(np.array_equal(key_rows, np.arange(len(key_rows))))
    return Segments(
        key_rows_k=None if keys_in_place else torch.from_numpy(key_rows),
        query_rows_q=None if in_place else torch.from_numpy(query_rows),
        query_places_q=None if in_place else torch.from_numpy(inverse(query_rows)),
        shapes=[(int(n), int(q), int(k)) for n, (k, q) in zip(sizes, shapes.T, strict=True)],
        query_positions_q=torch.from_numpy(queries[query_rows] - np.repeat(first_row[chosen], query_counts)),
        query_starts=torch.from_numpy(starts(query_counts).astype(np.int32)),
        key_starts=torch.from_numpy(starts(key_counts).astype(np.int32)),
    )


def starts(lengths: IntArray) -> IntArray:
    """[n + 1] where runs of these lengths start, and where the last one ends."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def inverse(permutation: IntArray) -> IntArray:
    """The permutation that undoes another."""
    places = np.empty_like(permutation)
    places[permutation] = np.arange(len(permutation))
    return places


def _ranges(firsts: IntArray, lengths: IntArray) -> IntArray:
    """first, first + 1, … of each run, one run after the other."""
    bounds = starts(lengths)
    return np.arange(bounds[-1]) + np.repeat(firsts - bounds[:-1], lengths)
