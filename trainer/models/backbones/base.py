"""The contract between DARec and a frozen language model.

Legend: T rows of packed tokens, R rows that are read, H query heads, G key/value heads, D head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from trainer.models.backbones.projections import Projections, Rotation


class BackboneLayer(nn.Module, ABC):
    """One frozen layer, taken apart where adapters and the second mask go in.

    A pre-norm layer computes `h + attend(norm(h))`, then `h + ffn(norm(h))`; a post-norm layer `norm(h + attend(h))`,
    then `norm(h + ffn(h))`. Attention scores are scaled by 1/√D; a family that scales otherwise puts the rest into its
    query projection.

    Attributes:
        pre_norm: where the norms stand.
        qkv: the query, key and value projections.
    """

    pre_norm: bool
    qkv: Projections

    def forward(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """`compute(layer, *inputs)`: the one entrance, so that a layer sharded over GPUs gathers its weights here."""
        return compute(self, *inputs)

    @abstractmethod
    def attention_norm(self, h_td: Tensor) -> Tensor:
        """The norm that belongs to attention, [T, hidden] to [T, hidden]."""

    @abstractmethod
    def attend_out(self, attended_td: Tensor) -> Tensor:
        """Attention's output projection, [T, H·D] to [T, hidden]."""

    @abstractmethod
    def ffn_norm(self, h_td: Tensor) -> Tensor:
        """The norm that belongs to the feed-forward network."""

    @abstractmethod
    def ffn(self, x_td: Tensor) -> Tensor:
        """The feed-forward network, [T, hidden] to [T, hidden]."""


class Backbone(nn.Module, ABC):
    """A frozen language model. Its parameters never require gradients.

    Attributes:
        hidden: width of the layers.
        embedding: width of the word embeddings; special tokens live there.
        output: width of what `finish` returns.
        max_positions: positions that the model knows.
        layers: the layers, `BackboneLayer` each.
    """

    hidden: int
    embedding: int
    output: int
    max_positions: int
    layers: nn.ModuleList

    @abstractmethod
    def word_embeddings(self, token_ids_t: Tensor) -> Tensor:
        """[T] vocabulary ids to [T, embedding]."""

    @abstractmethod
    def enter(self, embeddings_te: Tensor, positions_t: Tensor) -> Tensor:
        """Word embeddings and positions to the first layer's input [T, hidden]."""

    def rotation(self, positions_t: Tensor) -> Rotation | None:
        """Rotary embeddings of positions [T], each [T, D]; None for a family without them."""
        return None

    @abstractmethod
    def finish(self, h_rd: Tensor) -> Tensor:
        """The model's own last norm and projection, [R, hidden] to [R, output]."""
