"""References as runs: what is counted in the training part takes the place of training, and is evaluated once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.baselines import REFERENCES, ranked_by
from trainer.models.network import Network
from trainer.ranking import Ranked
from trainer.training.feed import Step
from trainer.training.task import Task
from trainer.training.warm import Judged


class CountedTask(Task):
    """See `Task`. Nothing is trained, so the model has no tensors: whoever measures it counts again.

    Args:
        name: of the reference.
        materials: dataset and validation.
        exclude_seen: leave the history out of the ranking.
    """

    steps_per_epoch = 0

    def __init__(self, name: str, materials: Judged, *, exclude_seen: bool) -> None:
        self.model, self.n_items = Network(), materials.dataset.n_items
        self._exclude_seen = exclude_seen
        self._reference, self._validation = REFERENCES[name].fit(materials.dataset), materials.validation

    def steps(self, epoch: int, start: int) -> Iterator[Step]:
        return iter(())

    def losses(self, part: Any) -> dict[str, Tensor]:
        raise TypeError("a reference has no losses")

    def rank(self) -> Ranked:
        """All users on every worker; the likelihoods are those of a softmax over the scores as they are."""
        judged = self._validation
        ranks, likelihoods = ranked_by(
            self._reference, judged.histories, judged.targets, exclude_seen=self._exclude_seen
        )
        return Ranked(ranks, torch.empty(len(ranks), 0, dtype=torch.int64), likelihoods)
