"""AdamW with linear warm-up and cosine decay to zero (Section 3.1.4), or a constant rate."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.optim import AdamW

from trainer.config import OptimizationConfig


def create_optimizer(model: nn.Module, config: OptimizationConfig) -> AdamW:
    """AdamW over the trainable parameters; vectors (biases, gates) are not decayed.

    The fused form is the fastest on CPU and GPU alike, and the one that can leave out a step by a flag on the device.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate, fused=True)


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Share of the peak rate at a step: linear from 1/warm-up, then a half cosine to 0 at `total_steps`."""
    warmup = math.ceil(total_steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: AdamW, config: OptimizationConfig, step: int, total_steps: int) -> float:
    """Set and return the rate of a step. It depends on the step alone, so a resumed run stays on the same curve."""
    if config.schedule == "cosine" or step < math.ceil(total_steps * config.warmup_fraction):
        rate = config.learning_rate * learning_rate_factor(step, total_steps, config.warmup_fraction)
    else:
        rate = config.learning_rate
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def apply_step(optimizer: AdamW, skip: Tensor | None) -> None:
    """Take an optimiser step.

    Args:
        optimizer: a fused one.
        skip: a scalar on the parameters' device that is 1.0 where the step must not be taken, so that the processor
            need not know; None takes it.
    """
    optimizer.found_inf = skip  # type: ignore[attr-defined]  # the fused kernels' own name, read by `step`
    optimizer.step()
