"""What a run trains, apart from how: its model, its batches, its losses and its ranking."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from trainer.models.network import Network
from trainer.ranking import Ranked
from trainer.training.feed import Step


class Task(ABC):
    """One kind of model in training. The loop (`loop.py`) does all else: steps, checkpoints, evaluations, the clock."""

    model: Network
    n_items: int
    steps_per_epoch: int
    sharded: bool = False
    """Whether frozen layers are spread over the workers, so that all have to go through the model together."""

    def begin(self) -> None:  # noqa: B027 - most have nothing to do
        """Before the first step of a fresh run, on every worker."""

    @abstractmethod
    def steps(self, epoch: int, start: int) -> Iterator[Step]:
        """This worker's steps of an epoch (from 0), of which the first `start` are done."""

    @abstractmethod
    def losses(self, part: Any) -> dict[str, Tensor]:
        """Losses of a part of a step by name, `total` among them; each divided by its number of terms in the batch."""

    @abstractmethod
    def rank(self) -> Ranked:
        """Ranks and likelihoods of the validation items, on every worker. The model is in evaluation mode."""
