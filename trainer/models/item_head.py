"""Item projections whose weights are computed.

Notation: I items, d size of a state, t size of a text vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from trainer.config import ItemTextConfig


class TextHead(nn.Module):
    """Item vectors in a text encoder's space: W_item = W + E P, with E frozen and P trained.

    Items that read alike begin alike, also those that nobody has had yet. Without free vectors W is 0.

    Args:
        config: t, and whether there are free vectors.
        hidden: d.
        n_items: I.
        vectors_it: E, rows of unit length; zeros when absent, for a model whose tensors are loaded.
    """

    vectors_it: Tensor

    def __init__(self, config: ItemTextConfig, hidden: int, n_items: int, vectors_it: Tensor | None) -> None:
        super().__init__()
        found = torch.zeros(n_items, config.dimension) if vectors_it is None else vectors_it
        self.register_buffer("vectors_it", found)
        self.projection_td = nn.Parameter(torch.randn(config.dimension, hidden) * 0.02)

    def forward(self, head: nn.Linear) -> nn.Linear:
        """The item projection, given that of the free vectors."""
        return computed_head(head.weight + self.vectors_it @ self.projection_td, head.bias)


def computed_head(weight_id: Tensor, bias_i: Tensor | None = None) -> nn.Linear:
    """An item head whose weights [I, d] are computed, so that gradients go on to what they come from.

    Args:
        weight_id: the weights.
        bias_i: zeros when absent.
    """
    head = nn.Linear(weight_id.shape[1], weight_id.shape[0], device="meta")
    del head.weight, head.bias  # parameters, which only leaves can be
    bias_i = weight_id.new_zeros(len(weight_id)) if bias_i is None else bias_i
    head.weight, head.bias = weight_id, bias_i  # type: ignore[assignment]
    return head


def unit_vectors(vectors_iw: Tensor, dimension: int) -> Tensor:
    """Vectors [I, w], centred, in the space of their `dimension` leading directions, at unit length; [I, dimension].

    Where there are fewer directions the rest is zero.
    """
    centred = (vectors_iw - vectors_iw.mean(0, keepdim=True)).double()
    # Of w × w numbers, however many items there are; the largest directions come last.
    _, directions = torch.linalg.eigh(centred.T @ centred)
    found = normalize(centred @ directions.flip(1)[:, :dimension], dim=1).float()
    return pad(found, (0, dimension - found.shape[1]))
