"""Number formats: what a run computes in, and what its frozen weights are held in."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch

from trainer.models.backbones.base import Backbone

Precision = Literal["float32", "bfloat16"]


def autocast(precision: Precision, device: str) -> torch.autocast | nullcontext[None]:
    """Matrix products in bfloat16 where asked for; trained parameters and the optimiser stay float32."""
    if precision == "bfloat16":
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()


def hold_in(backbone: Backbone, precision: Precision) -> None:
    """Hold a frozen backbone's matrices in bfloat16, in place, to halve their memory and reading time.

    Vectors (norms, biases) stay float32: they are small, and norms are computed in float32 anyway.
    """
    if precision == "float32":
        return
    for parameter in backbone.parameters():
        if parameter.ndim >= 2:
            parameter.data = parameter.data.to(torch.bfloat16)
