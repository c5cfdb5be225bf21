"""The bottleneck adapter and its two placements (Sections 2.2.5 and 2.3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

_ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}


class Adapter(nn.Module):
    """A(h) = W2 σ(W1 h + b1) + b2 + h; W2 and b2 start at zero, so A starts as the identity.

    Args:
        hidden: size of h.
        bottleneck: rows of W1.
        activation: σ; the paper's formula has none (`identity`).
    """

    def __init__(self, hidden: int, bottleneck: int, activation: Literal["identity", "relu", "gelu"]) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, bottleneck)
        self.activation = _ACTIVATIONS[activation]()
        self.up = nn.Linear(bottleneck, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        """[…, hidden] to [..., hidden]."""
        adapted: Tensor = self.up(self.activation(self.down(h))) + h
        return adapted


class Adapted(nn.Module):
    """A frozen block's output, adapted in series or in parallel.

    serial: A(block(x)); parallel: (block(x) + A(x)) / 2.
    """

    def __init__(self, adapter: Adapter, kind: Literal["serial", "parallel"]) -> None:
        super().__init__()
        self.adapter = adapter
        self.kind = kind

    def forward(self, x: Tensor, block_output: Tensor) -> Tensor:
        """Both arguments and the result are […, hidden]."""
        if self.kind == "serial":
            return torch.as_tensor(self.adapter(block_output))
        return torch.as_tensor((block_output + self.adapter(x)) / 2)
