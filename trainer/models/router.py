"""The router G that mixes the two relation adapters' outputs token by token (Section 2.3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Router(nn.Module):
    """β = softmax([q; p] W_gate + b_gate), h~ = β1 q + β2 p. Starts at β = (½, ½)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * hidden, 2)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, q_td: Tensor, p_td: Tensor) -> Tensor:
        """Mix two [T, hidden] tensors into one."""
        beta_t2 = self.gate(torch.cat([q_td, p_td], dim=-1)).softmax(dim=-1)
        return beta_t2[:, :1] * q_td + beta_t2[:, 1:] * p_td
