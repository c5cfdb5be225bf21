"""Frozen query, key and value projections as one matrix.

Legend: T tokens, d hidden size, H query heads, G key/value heads (G divides H; G < H is grouped-query attention),
D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [T, D] of rotary position embeddings (Su et al., 2021), in the order of `rotate_half`; never of
less than 32 bits."""


class Projections(nn.Module):
    """x W + b, cut into queries, keys and values, with norms and rotation per head where a family has them.

    Args:
        weights: of the query, key and value projection, [H·D, d], [G·D, d], [G·D, d].
        biases: [H·D], [G·D], [G·D], or None where the family has none.
        heads: H.
        key_value_heads: G.
        query_norm: norm over D of every query head (Qwen 3).
        key_norm: the same of every key head.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor] | None,
        heads: int,
        key_value_heads: int,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.key_value_heads = heads, key_value_heads
        self.query_size = weights[0].shape[0]
        self.weight = nn.Parameter(torch.cat([weight.detach() for weight in weights]), requires_grad=False)
        self.bias = None
        if biases is not None:
            self.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
        self.query_norm, self.key_norm = query_norm, key_norm

    def forward(self, x_td: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """[T, d] to queries [T, H, D], keys [T, G, D] and values [T, G, D]."""
        return self._finish(linear(x_td, self.weight, self.bias), rotation)

    def queries(self, x_rd: Tensor, rotation: Rotation | None) -> Tensor:
        """[R, d] to queries [R, H, D] alone."""
        bias = None if self.bias is None else self.bias[: self.query_size]
        return self._finish_queries(linear(x_rd, self.weight[: self.query_size], bias), rotation)

    def keys_values(self, x_td: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        """[T, d] to keys and values [T, G, D] alone."""
        bias = None if self.bias is None else self.bias[self.query_size :]
        return self._finish_keys_values(linear(x_td, self.weight[self.query_size :], bias), rotation)

    def _finish(self, projected: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys_values = projected.split([self.query_size, projected.shape[-1] - self.query_size], -1)
        return self._finish_queries(queries, rotation), *self._finish_keys_values(keys_values, rotation)

    def _finish_queries(self, projected: Tensor, rotation: Rotation | None) -> Tensor:
        return _normed_and_rotated(projected.unflatten(-1, (self.heads, -1)), self.query_norm, rotation)

    def _finish_keys_values(self, projected: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        keys, values = projected.unflatten(-1, (2, self.key_value_heads, -1)).unbind(-3)
        return _normed_and_rotated(keys, self.key_norm, rotation), values


def _normed_and_rotated(x_thd: Tensor, norm: nn.Module | None, rotation: Rotation | None) -> Tensor:
    """The type stays x's; norm and rotation are computed in float32 where x, as a matrix product, is bfloat16."""
    turned = x_thd if norm is None else norm(x_thd)
    if rotation is not None:
        cos, sin = (part[:, None] for part in rotation)
        turned = turned * cos + rotate_half(turned) * sin
    return turned.to(x_thd.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """(x₁, x₂) to (−x₂, x₁) over the two halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
