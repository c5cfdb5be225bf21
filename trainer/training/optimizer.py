"""AdamW with linear warm-up and cosine decay to zero (Section 3.1.4), or a constant rate."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.optim import AdamW

from trainer.config import OptimizationConfig, Part

_PARTS: dict[Part, tuple[str, ...]] = {
    "head": ("item_head.", "text_head."),
    "prior": ("prior.",),
    "adapters": ("da_layers.", "special"),
    "collaborative": ("collaborative.", "columns."),
}
"""Where the names of their parameters begin."""


def create_optimizer(model: nn.Module, config: OptimizationConfig) -> AdamW:
    """AdamW over the trainable parameters; vectors (biases, gates) are not decayed.

    The fused form is the fastest on CPU and GPU alike, and the one that can leave out a step by a flag on the device.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (parameter.ndim >= 2) == decayed:
                decay, rate = _of_part(name, config)
                groups.setdefault((decayed, decay if decayed else 0.0, rate), []).append(parameter)
    if not groups:  # a reference has nothing to train; AdamW takes that as a group, and not without one
        groups[False, 0.0, 1.0] = []
    return AdamW(
        [{"params": found, "weight_decay": decay, "rate": rate} for (_, decay, rate), found in groups.items()],
        lr=config.learning_rate,
        fused=True,
    )


def _of_part(name: str, config: OptimizationConfig) -> tuple[float, float]:
    """Weight decay and share of the learning rate of a parameter."""
    for part, prefixes in _PARTS.items():
        if name.startswith(prefixes):
            return config.decays.get(part, config.weight_decay), config.rates.get(part, 1.0)
    return config.weight_decay, 1.0


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
        group["lr"] = rate * group["rate"]
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
