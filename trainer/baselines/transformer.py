"""The Transformer encoder that SASRec and BERT4Rec share (Vaswani et al. 2017; post-norm as in BERT).

Notation: B sequences, T places, H heads, d size of a state.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, scaled_dot_product_attention

from trainer.baselines.sequence import Options

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class TransformerOptions(Options):
    """Size of the encoder."""

    hidden: Count = Field(64, description="d, size of embeddings and states.")
    inner: Count = Field(256, description="Width of the feed-forward layers.")
    layers: Count = Field(2, description="Encoder layers.")
    heads: Count = Field(2, description="Attention heads; divides `hidden`.")
    dropout: Share = Field(0.5, description="Of embeddings, attention weights and layer outputs.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> TransformerOptions:
        if self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden ({self.hidden})")
        return self


class Encoder(nn.Module):
    """Layers of self-attention and feed-forward networks over embedded items.

    Args:
        options: its size.
        positions: longest sequence.
    """

    def __init__(self, options: TransformerOptions, positions: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(positions, options.hidden).normal_(std=0.02))
        self.norm = nn.LayerNorm(options.hidden)
        self.layers = nn.ModuleList(_Layer(options) for _ in range(options.layers))
        self._dropout = options.dropout

    def forward(self, embedded_btd: Tensor, allowed: Tensor) -> Tensor:
        """[B, T, d] states; `allowed` [B or 1, 1, T, T] says which place (column) each place (row) may see."""
        length = embedded_btd.shape[1]
        h_btd = self.norm(embedded_btd + self.position[:length])
        h_btd = dropout(h_btd, self._dropout, self.training)
        for layer in self.layers:
            h_btd = layer(h_btd, allowed)
        return h_btd


class _Layer(nn.Module):
    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        size = options.hidden
        self.qkv, self.output = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.inner, self.outer = nn.Linear(size, options.inner), nn.Linear(options.inner, size)
        self.attention_norm, self.norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self._heads, self._dropout = options.heads, options.dropout
        for linear in (self.qkv, self.output, self.inner, self.outer):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, h_btd: Tensor, allowed: Tensor) -> Tensor:
        share = self._dropout if self.training else 0.0
        q_bhte, k_bhte, v_bhte = self.qkv(h_btd).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed_bhte = scaled_dot_product_attention(q_bhte, k_bhte, v_bhte, attn_mask=allowed, dropout_p=share)
        attended = self.output(mixed_bhte.transpose(1, 2).flatten(2))
        h_btd = self.attention_norm(h_btd + dropout(attended, share))
        return torch.as_tensor(self.norm(h_btd + dropout(self.outer(gelu(self.inner(h_btd))), share)))


def causal(length: int, device: torch.device) -> Tensor:
    """[1, 1, T, T]: every place sees itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def within(lengths_b: Tensor, length: int) -> Tensor:
    """[B, 1, T, T]: every place sees all places of its own sequence."""
    inside = torch.arange(length, device=lengths_b.device) < lengths_b[:, None]
    return inside[:, None, None, :].expand(-1, 1, length, -1)
