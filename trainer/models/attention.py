"""The two attentions of a DALayer over packed streams, from one set of queries, keys and values.

Legend: T tokens, S streams, H query heads, G key/value heads, D head dimension. Masks as in Section 2.3.1, before the
softmax; scores are scaled by the head dimension, as the frozen weights were trained (Appendix C's formula differs; see
docs/darec.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainer.models.streams import PackedStreams, Segments

QKV = tuple[Tensor, Tensor, Tensor]
"""Queries [T, H, D], keys [T, G, D], values [T, G, D]."""


def causal_attention(qkv: QKV, streams: PackedStreams) -> Tensor:
    """Token t sees the tokens ≤ t of its own stream; never the collaborative column.

    Args:
        qkv: queries, keys and values of all tokens.
        streams: the streams.

    Returns:
        [T, H · D].
    """
    outputs = [_attend(*bucket, is_causal=True) for bucket in _buckets(qkv, streams.streams)]
    return torch.cat(outputs).index_select(0, streams.streams.order_t)


def context_attention(qkv: QKV, streams: PackedStreams, column: tuple[Tensor, Tensor] | None) -> Tensor:
    """Token t sees, in both directions, the tokens of its own span and the stream's collaborative column.

    Args:
        qkv: queries, keys and values of all tokens.
        streams: the streams, whose spans are used.
        column: key and value [S, G, D] of each stream's collaborative column, or None without one.

    Returns:
        [T, H · D].
    """
    spans = streams.spans
    buckets = _buckets(qkv, spans)
    if column is not None:
        sizes = [n for n, _ in spans.shapes]
        keys, values = (part.index_select(0, spans.stream_n)[:, None].split(sizes) for part in column)
        buckets = [
            (q, torch.cat([column_key, k], 1), torch.cat([column_value, v], 1))
            for (q, k, v), column_key, column_value in zip(buckets, keys, values, strict=True)
        ]
    return torch.cat([_attend(*qkv, is_causal=False) for qkv in buckets]).index_select(0, spans.order_t)


def _buckets(qkv: QKV, segments: Segments) -> list[QKV]:
    """Queries, keys and values [n, ℓ, heads, D] of every bucket, by one permutation of the rows."""
    sizes = [n * length for n, length in segments.shapes]
    parts = []
    for tensor in qkv:
        rows = tensor.index_select(0, segments.rows_t).split(sizes)
        parts.append([part.unflatten(0, shape) for part, shape in zip(rows, segments.shapes, strict=True)])
    return list(zip(*parts, strict=True))


def _attend(q_nlhd: Tensor, k_nmgd: Tensor, v_nmgd: Tensor, is_causal: bool) -> Tensor:
    """Attention inside every segment, its rows one after the other: [n · ℓ, H · D]."""
    q, k, v = (x.transpose(1, 2) for x in (q_nlhd, k_nmgd, v_nmgd))
    grouped = q.shape[1] != k.shape[1]
    attended = scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=grouped)
    return attended.transpose(1, 2).flatten(0, 1).flatten(1)
