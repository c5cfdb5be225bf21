"""Divergence: losses or gradients that are not finite, or a loss far above where it began, noticed within a step.

A loss counts as exploded above `EXPLODED` times its level. The level is the larger of what guessing costs (ln items for
L_seq and L_align, ln 2 for a term of L_cf) and of its value in the run's first step, since a pretrained backbone may
start far above guessing. A healthy loss falls from there; ten times the level is worse than any guess, whatever the
batch. L_cl is a cosine over τ and cannot explode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOSSES = ("sequence", "align", "contrastive", "collaborative", "total")
"""Order of the losses in a vector of them."""
EXPLODED = 10.0


class Diverged(RuntimeError):  # noqa: N818 - a status, not a fault of the code
    """A loss or a gradient is no longer finite, or a loss has exploded."""


@dataclass(frozen=True)
class Moment:
    """When something was computed, for people: steps and epochs count from 1."""

    step: int
    epoch: int
    learning_rate: float


class LossWatch:
    """Watches losses and gradient norm of every step.

    On the CPU a step is judged before it is applied. On a GPU that would make the processor wait; so the figures travel
    to page-locked memory meanwhile and are judged one step later, and the optimiser leaves out a step whose flag
    (`bad`) is set on the device itself. Every worker sees the same figures, so all of them stop at the same step.

    Args:
        n_items: items of the catalogue.
        first: losses of the run's first step, by name; filled in there, and part of a checkpoint.
        late: judge one step later.
    """

    def __init__(self, n_items: int, first: dict[str, float], late: bool) -> None:
        guess = math.log(max(n_items, 2))
        self._guess = {"sequence": guess, "align": guess, "collaborative": math.log(2)}
        self._first = first
        self._late = late
        self._pending: tuple[Moment, Tensor, torch.cuda.Event | None] | None = None

    def look(self, moment: Moment, losses_l: Tensor, norm: Tensor) -> Tensor | None:
        """Take in a step's figures.

        Args:
            moment: which step it is.
            losses_l: losses in the order of `LOSSES`, over all workers.
            norm: norm of the gradient, over all workers, before clipping.

        Returns:
            When judging late: 1.0 if a figure is not finite, else 0.0, a scalar beside the losses.

        Raises:
            Diverged: if this step diverged, or the one before when judging late.
        """
        figures = torch.cat([losses_l, norm.detach().to(losses_l.dtype)[None]])
        if not self._late:
            self._judge(moment, figures, None)
            return None
        before, self._pending = self._pending, (moment, *_on_its_way(figures))
        if before is not None:
            self._judge(*before)
        return (~figures.isfinite().all()).float()

    def finish(self) -> None:
        """Judge what has not been judged yet.

        Raises:
            Diverged: if that step diverged.
        """
        before, self._pending = self._pending, None
        if before is not None:
            self._judge(*before)

    def _judge(self, moment: Moment, figures: Tensor, arrived: torch.cuda.Event | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        *values, norm = figures.tolist()
        losses = dict(zip(LOSSES, values, strict=True))
        for name, value in losses.items():
            if not math.isfinite(value):
                raise _diverged(moment, f"the {name} loss is {value}")
        if not math.isfinite(norm):
            raise _diverged(moment, f"the gradient's norm is {norm}, with a total loss of {losses['total']:.4g}")
        if not self._first:
            self._first.update(losses)
        for name, guess in self._guess.items():
            level = max(guess, self._first[name])
            if losses[name] > EXPLODED * level:
                raise _diverged(moment, f"the {name} loss is {losses[name]:.4g}, over {EXPLODED:g} times {level:.4g}")


def _on_its_way(figures: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy in host memory, and what tells that it has arrived."""
    if figures.device.type != "cuda":
        return figures, None
    arrived = torch.cuda.Event()
    copy = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True).copy_(figures, non_blocking=True)
    arrived.record()
    return copy, arrived


def _diverged(moment: Moment, what: str) -> Diverged:
    return Diverged(
        f"{what} in step {moment.step} (epoch {moment.epoch}, learning rate {moment.learning_rate:.3g}); lower "
        "optimization.learning_rate or optimization.max_grad_norm, or raise optimization.warmup_fraction"
    )
