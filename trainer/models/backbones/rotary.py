"""Parts that families with rotary position embeddings share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.backbones.projections import Rotation


class RotaryEmbedding(nn.Module):
    """A Hugging Face model's own rotary embedding, its scaling (linear, Llama 3, YaRN) included.

    Its frequencies stay in float32 when the model is cast to another type: rounded to bfloat16 they would turn distant
    positions by wrong angles.

    Args:
        embedding: the model's `rotary_emb`.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, positions_t: Tensor, dtype: torch.dtype) -> Rotation:
        """Cosines and sines [T, D] of positions [T], in a model of this type."""
        wide = positions_t.new_empty(0, dtype=torch.promote_types(dtype, torch.float32))
        cos, sin = self.embedding(wide, positions_t[None])
        return cos[0], sin[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = dict(self.embedding.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in self.embedding.named_buffers():
            setattr(self.embedding, name, exact[name].to(moved.device))
        return self


class RMSNorm(nn.RMSNorm):
    """A Hugging Face RMSNorm as PyTorch's own, which is fused on GPUs and keeps float64; the weight is shared.

    It computes in the type of its weight, which stays float32 where matrices are held in bfloat16.

    Args:
        norm: the model's norm.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.weight.shape[0], eps=norm.variance_epsilon, device="meta")
        self.weight = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return super().forward(x.to(self.weight.dtype))
