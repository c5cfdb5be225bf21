"""The two attentions of a DALayer over packed streams, from one set of queries, keys and values.

Legend: T tokens, S streams, H heads, D head dimension. Masks as in Section 2.3.1, before the softmax; scores are scaled
by the head dimension, as the frozen weights were trained (Appendix C's formula differs; see docs/darec.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainer.models.streams import PackedStreams, Segments


def causal_attention(qkv_t3hd: Tensor, streams: PackedStreams) -> Tensor:
    """Token t sees the tokens ≤ t of its own stream; never the collaborative column.

    Args:
        qkv_t3hd: queries, keys and values [T, 3, H, D].
        streams: the streams.

    Returns:
        [T, H, D].
    """
    outputs = [_attend(*qkv, is_causal=True) for qkv in _buckets(qkv_t3hd, streams.streams)]
    return torch.cat(outputs).index_select(0, streams.streams.order_t)


def context_attention(qkv_t3hd: Tensor, streams: PackedStreams, column_s2hd: Tensor | None) -> Tensor:
    """Token t sees, in both directions, the tokens of its own span and the stream's collaborative column.

    Args:
        qkv_t3hd: queries, keys and values [T, 3, H, D].
        streams: the streams, whose spans are used.
        column_s2hd: key and value [S, 2, H, D] of the collaborative column, or None without one.

    Returns:
        [T, H, D].
    """
    spans = streams.spans
    buckets = _buckets(qkv_t3hd, spans)
    if column_s2hd is not None:
        columns = column_s2hd.index_select(0, spans.stream_n).split([n for n, _ in spans.shapes])
        buckets = [
            (q, torch.cat([c[:, :1], k], 1), torch.cat([c[:, 1:], v], 1))
            for (q, k, v), c in zip(buckets, columns, strict=True)
        ]
    return torch.cat([_attend(*qkv, is_causal=False) for qkv in buckets]).index_select(0, spans.order_t)


def _buckets(qkv_t3hd: Tensor, segments: Segments) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values [n, ℓ, H, D] of every bucket, by one permutation of the rows."""
    parts = qkv_t3hd.index_select(0, segments.rows_t).split([n * length for n, length in segments.shapes])
    shaped = [part.unflatten(0, shape) for part, shape in zip(parts, segments.shapes, strict=True)]
    return [(part[:, :, 0], part[:, :, 1], part[:, :, 2]) for part in shaped]


def _attend(q_nlhd: Tensor, k_nmhd: Tensor, v_nmhd: Tensor, is_causal: bool) -> Tensor:
    """Attention inside every segment, its rows one after the other: [n · ℓ, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q_nlhd, k_nmhd, v_nmhd))
    return scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2).flatten(0, 1)
