"""The contract between DARec and a frozen language model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class BackboneLayer(nn.Module, ABC):
    """One frozen decoder layer, taken apart where adapters and the second mask go in.

    A pre-norm layer computes `h + attend(norm(h))`, then `h + ffn(norm(h))`; a post-norm layer `norm(h + attend(h))`,
    then `norm(h + ffn(h))`. T is any number of rows, H heads of dimension D.
    """

    pre_norm: bool

    @abstractmethod
    def attention_norm(self, h_td: Tensor) -> Tensor:
        """The norm that belongs to attention, [T, hidden] to [T, hidden]."""

    @abstractmethod
    def queries_keys_values(self, x_td: Tensor) -> Tensor:
        """The three projections side by side, [T, 3, H, D]."""

    @abstractmethod
    def attend_out(self, attended_thd: Tensor) -> Tensor:
        """Attention's output projection, [T, H, D] to [T, hidden]."""

    @abstractmethod
    def ffn_norm(self, h_td: Tensor) -> Tensor:
        """The norm that belongs to the feed-forward network."""

    @abstractmethod
    def ffn(self, x_td: Tensor) -> Tensor:
        """The feed-forward network without norm and residual, [T, hidden] to [T, hidden]."""


class Backbone(nn.Module, ABC):
    """A frozen decoder. Its parameters never require gradients.

    Attributes:
        hidden: width of the layers.
        embedding: width of the word embeddings; special tokens live there.
        output: width of what `finish` returns.
        max_positions: positions that the model knows.
        layers: the decoder layers, `BackboneLayer` each.
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

    @abstractmethod
    def finish(self, h_td: Tensor) -> Tensor:
        """The model's own last norm and projection, [R, hidden] to [R, output]."""
