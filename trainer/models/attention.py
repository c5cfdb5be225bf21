"""The two attentions of a DALayer over packed streams, from one set of queries, keys and values.

Legend: T tokens, S streams, H heads, D head dimension. Masks as in Section 2.3.1, before the softmax; scores are scaled
by the head dimension, as the frozen weights were trained (Appendix C's formula differs; see docs/darec.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainer.models.streams import PackedStreams


def causal_attention(q_thd: Tensor, k_thd: Tensor, v_thd: Tensor, streams: PackedStreams) -> Tensor:
    """Token t sees the tokens ≤ t of its own stream; never the collaborative column. Returns [T, H, D]."""
    parts = zip(*(x.transpose(0, 1).split(streams.stream_lengths, dim=1) for x in (q_thd, k_thd, v_thd)), strict=True)
    outputs = [scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0] for q, k, v in parts]
    return torch.cat(outputs, dim=1).transpose(0, 1)


def context_attention(
    q_thd: Tensor, k_thd: Tensor, v_thd: Tensor, streams: PackedStreams, column: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Token t sees, in both directions, the tokens of its own span and the stream's collaborative column.

    Args:
        q_thd: queries [T, H, D].
        k_thd: keys [T, H, D].
        v_thd: values [T, H, D].
        streams: the streams, whose spans are used.
        column: key and value [S, H, D] of the collaborative column, or None without one.

    Returns:
        [T, H, D].
    """
    outputs = []
    for bucket in streams.spans:
        q, k, v = (_gather(x, bucket.rows_nl) for x in (q_thd, k_thd, v_thd))
        if column is not None:
            k, v = (torch.cat([c[bucket.stream_n][:, None], x], 1) for c, x in zip(column, (k, v), strict=True))
        attended = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, streams.span_order_t)


def _gather(x_thd: Tensor, rows_nl: Tensor) -> Tensor:
    return x_thd.index_select(0, rows_nl.flatten()).view(*rows_nl.shape, *x_thd.shape[1:])
