"""The contract between DARec and a frozen language model.

Legend: T rows of packed tokens, R rows that are read, H query heads, G key/value heads, D head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from trainer.models.backbones.projections import Projections, Rotation


class BackboneLayer(nn.Module):
    """One frozen layer, taken apart where adapters and the second mask go in.

    A pre-norm layer computes `h + attend(norm(h))`, then `h + ffn(norm(h))`; a post-norm layer `norm(h + attend(h))`,
    then `norm(h + ffn(h))`. Attention scores are scaled by 1/√D; a family that scales otherwise puts the rest into its
    query projection.

    Args:
        pre_norm: where the norms stand.
        qkv: the query, key and value projections.
        attention_norm: the norm that belongs to attention, [T, hidden] to [T, hidden].
        attend_out: attention's output projection, [T, H·D] to [T, hidden].
        ffn_norm: the norm that belongs to the feed-forward network, [T, hidden] to [T, hidden].
        ffn: the feed-forward network, [T, hidden] to [T, hidden].
    """

    def __init__(
        self,
        *,
        pre_norm: bool,
        qkv: Projections,
        attention_norm: nn.Module,
        attend_out: nn.Module,
        ffn_norm: nn.Module,
        ffn: nn.Module,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.qkv = qkv
        self.attention_norm = attention_norm
        self.attend_out = attend_out
        self.ffn_norm = ffn_norm
        self.ffn = ffn

    def forward(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """`compute(layer, *inputs)`: the one entrance, so that a layer sharded over GPUs gathers its weights here."""
        return compute(self, *inputs)


class Backbone(nn.Module, ABC):
    """A frozen language model. Its parameters never require gradients.

    Args:
        model: the loaded Hugging Face model; it is frozen, and taken apart by the family.
        layers: the layers.
        embedding: width of the word embeddings, where special tokens live; `hidden` if absent.
        output: width of what `finish` returns; `hidden` if absent.

    Attributes:
        hidden: width of the layers.
        max_positions: positions that a stream may have.
    """

    layers: nn.ModuleList

    def __init__(
        self, model: Any, layers: Iterable[BackboneLayer], embedding: int | None = None, output: int | None = None
    ) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.hidden = int(model.config.hidden_size)
        self.embedding = embedding or self.hidden
        self.output = output or self.hidden
        self.max_positions = self.positions(model.config)
        self.layers = nn.ModuleList(layers)

    @classmethod
    def positions(cls, config: Any) -> int:
        """Positions that a stream may have with a model of this Hugging Face config.

        Raises:
            BadInput: if the config asks for something that the family's adaption does not do.
        """
        return int(config.max_position_embeddings)

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
