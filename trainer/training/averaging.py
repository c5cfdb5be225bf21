"""The exponential moving average of the trained weights (Polyak & Juditsky 1992).

The last steps of a run move the weights at random around where they settle; their average stays put, so what is
evaluated differs less from seed to seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """w̄ ← β_t w̄ + (1 - β_t) w after every step.

    β_t = min(decay, (1 + t) / (10 + t)), so that a short run does not average in its initial weights.

    Args:
        parameters: what is trained.
        decay: β.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self.tensors = [parameter.detach().clone() for parameter in parameters]
        """w̄, in the order of the parameters."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step t, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, self._parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights within, and its own again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self._parameters, self.tensors, strict=True):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)
