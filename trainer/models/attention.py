"""Attention inside segments of packed rows: both masks of a DALayer from one set of queries, keys and values.

Legend: Q queries, T rows, H query heads, G key/value heads, D head dimension; a bucket has n segments of q queries and
k keys. Masks act before the softmax and scores are scaled by the head dimension, as the frozen weights were trained
(Appendix C's formula differs; see docs/darec.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainer.models.masks import Segments

QKV = tuple[Tensor, Tensor, Tensor]
"""Queries [Q, H, D], keys [T, G, D], values [T, G, D]."""


def causal_attention(qkv: QKV, streams: Segments) -> Tensor:
    """Token t sees the tokens ≤ t of its own stream; never the collaborative column. Returns [Q, H · D]."""
    return _attention(qkv, streams, causal=True)


def context_attention(qkv: QKV, spans: Segments, column: tuple[Tensor, Tensor] | None) -> Tensor:
    """Token t sees, in both directions, the tokens of its own span and the stream's collaborative column.

    Args:
        qkv: queries, keys and values.
        spans: the spans, with the column exactly if there is one.
        column: key and value [S, G, D] of each stream's collaborative column, or None without one.

    Returns:
        [Q, H · D].
    """
    queries, keys, values = qkv
    if column is not None:
        keys, values = torch.cat([keys, column[0]]), torch.cat([values, column[1]])
    return _attention((queries, keys, values), spans, causal=False)


def _attention(qkv: QKV, segments: Segments, *, causal: bool) -> Tensor:
    rows = (segments.query_rows_q, segments.key_rows_k, segments.key_rows_k)
    ordered = [_take(tensor, index) for tensor, index in zip(qkv, rows, strict=True)]
    attended = (_varlen if _has_varlen(ordered[0], segments, causal) else _bucketed)(ordered, segments, causal)
    return _take(attended.flatten(1), segments.query_places_q)


def _take(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor.index_select(0, rows)


def _has_varlen(queries: Tensor, segments: Segments, causal: bool) -> bool:
    """Flash attention over all segments at once: GPUs, half precision, no mask within a segment but the causal one."""
    halves = queries.is_cuda and queries.dtype in (torch.bfloat16, torch.float16)
    return halves and (not causal or all(q == k for _, q, k in segments.shapes))


def _varlen(qkv: list[Tensor], segments: Segments, causal: bool) -> Tensor:
    # GPUs alone get here, and it imports the compiler: seconds that every start on a CPU would wait.
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, values = (tensor.contiguous() for tensor in qkv)
    attended = varlen_attn(
        queries,
        keys,
        values,
        segments.query_starts,
        segments.key_starts,
        max(q for _, q, _ in segments.shapes),
        max(k for _, _, k in segments.shapes),
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return torch.as_tensor(attended)


def _bucketed(qkv: list[Tensor], segments: Segments, causal: bool) -> Tensor:
    """One dense attention for each bucket, [Q, H, D]."""
    query_sizes = [n * q for n, q, _ in segments.shapes]
    key_sizes = [n * k for n, _, k in segments.shapes]
    queries, positions = (tensor.split(query_sizes) for tensor in (qkv[0], segments.query_positions_q))
    keys, values = (tensor.split(key_sizes) for tensor in qkv[1:])
    buckets = zip(segments.shapes, queries, keys, values, positions, strict=True)
    return torch.cat([_attend(*bucket, causal=causal) for bucket in buckets])


def _attend(
    shape: tuple[int, int, int], queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, *, causal: bool
) -> Tensor:
    n, q, k = shape
    queries_nhqd = queries.unflatten(0, (n, q)).transpose(1, 2)
    keys_ngkd, values_ngkd = (x.unflatten(0, (n, k)).transpose(1, 2) for x in (keys, values))
    mask = None
    if causal and 1 < q < k:
        mask = torch.arange(k, device=positions.device) <= positions.view(n, 1, q, 1)
    # A single query is the last row of its segment, so that nothing is hidden from it.
    attended = scaled_dot_product_attention(
        queries_nhqd,
        keys_ngkd,
        values_ngkd,
        attn_mask=mask,
        is_causal=causal and 1 < q == k,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1)
