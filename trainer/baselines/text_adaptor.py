"""From text vectors to states of a sequence, as UniSRec does it in pre-training and fine-tuning alike.

Notation: N vectors, B sequences of T items, w width of a text vector, d size of a state, G experts.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize, softplus

from trainer.baselines.transformer import Count, Encoder, Share, TransformerOptions, causal

_LEAST_NOISE = 1e-2


class AdaptorOptions(TransformerOptions):
    """Sizes of adaptor and Transformer."""

    hidden: Count = Field(300, description="d, size of item vectors and states.")
    experts: Count = Field(8, description="G, whitening layers that the gate mixes.")
    adaptor_dropout: Share = Field(0.2, description="Of the text vectors.")
    temperature: Annotated[float, Field(gt=0)] = Field(0.07, description="τ; scores are cosines over it.")


class Adaptor(nn.Module):
    """Parametric whitening by a mixture of experts.

    x̃_g = (x − b_g) W_g,   v = Σ_g softmax(x W_gate + δ)_g x̃_g,   δ = N(0, 1) · softplus(x W_noise) in training
    (Eqs. 2 to 4).

    Args:
        width: w.
        options: d, G and dropout.
    """

    def __init__(self, width: int, options: AdaptorOptions) -> None:
        super().__init__()
        experts = options.experts
        self.weight_gwd = nn.Parameter(torch.empty(experts, width, options.hidden).normal_(std=0.02))
        self.bias_gw = nn.Parameter(torch.zeros(experts, width))
        self.gate_wg, self.noise_wg = (nn.Parameter(torch.zeros(width, experts)) for _ in range(2))
        self._dropout = options.adaptor_dropout

    def forward(self, text: Tensor) -> Tensor:
        """[…, d] of text vectors […, w]."""
        dropped = dropout(text, self._dropout, self.training)
        shifts_gd = torch.einsum("gw,gwd->gd", self.bias_gw, self.weight_gwd)
        whitened = torch.einsum("...w,gwd->...gd", dropped, self.weight_gwd) - shifts_gd
        logits = text @ self.gate_wg
        if self.training:
            logits = logits + torch.randn_like(logits) * (softplus(text @ self.noise_wg) + _LEAST_NOISE)
        return (logits.softmax(-1)[..., None] * whitened).sum(-2)


class TextSequences(nn.Module):
    """Adaptor and Transformer: all of UniSRec that is moved from one dataset to another.

    Args:
        width: w.
        positions: longest sequence.
        options: its sizes.
    """

    def __init__(self, width: int, positions: int, options: AdaptorOptions) -> None:
        super().__init__()
        self.adaptor, self.encoder = Adaptor(width, options), Encoder(options, positions)

    def states(self, items_btd: Tensor) -> Tensor:
        """[B, T, d] states of unit length after each item; later ones are not seen."""
        return normalize(self.encoder(items_btd, causal(items_btd.shape[1], items_btd.device)), dim=-1)
