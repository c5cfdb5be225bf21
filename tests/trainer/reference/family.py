"""What every family's literal description shares.

Legend: m tokens of a stream, d hidden size, H query heads, G key/value heads, D head dimension. A family says how a
stream enters, how layer k normalises, projects, attends out and feeds forward, and how the last states leave. It reads
the weights of a Hugging Face model by name.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ACTIVATIONS = {
    "relu": lambda x: torch.where(x > 0, x, 0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


class Family:
    """Weights by their Hugging Face names; `heads` H, `groups` G, `size` D."""

    pre_norm = True

    def __init__(self, hf_model):
        self.w = {name: tensor.detach() for name, tensor in hf_model.named_parameters()}
        self.config = config = hf_model.config
        self.layers = config.num_hidden_layers
        self.heads = config.num_attention_heads
        self.groups = getattr(config, "num_key_value_heads", self.heads)
        self.size = getattr(config, "head_dim", config.hidden_size // self.heads)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
        return centred / deviation * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def split(self, x: Tensor, heads: int) -> Tensor:
        """[m, heads · D] to [m, heads, D]."""
        return x.reshape(len(x), heads, self.size)

    def score(self, k: int, query: Tensor, key: Tensor) -> Tensor:
        """Scores [m, m + 1] of one head."""
        return query @ key.T / math.sqrt(self.size)
