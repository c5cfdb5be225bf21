"""Popularity: the same ranking for everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset import Dataset


@dataclass(frozen=True)
class Popularity:
    """Items by their number of interactions in the training part, [items]."""

    counts: Tensor

    @classmethod
    def fit(cls, dataset: Dataset) -> Popularity:
        """Count the training part."""
        return cls(torch.from_numpy(np.bincount(dataset.train.values, minlength=dataset.n_items)).float())

    def score(self, histories: Sequence[NDArray[np.int32]]) -> Tensor:
        """The counts, once a history: [histories, items]."""
        return self.counts.expand(len(histories), -1)
