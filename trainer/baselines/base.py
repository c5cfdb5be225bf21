"""What a reference is, and how it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset import Dataset, Split
from trainer.metrics import ranking_metrics, ranks

_USERS_AT_A_TIME = 1024


class Reference(Protocol):
    """A model that is counted, not trained."""

    @classmethod
    def fit(cls, dataset: Dataset) -> Self:
        """Count in the training part of a (sub)set."""
        ...

    def score(self, histories: Sequence[NDArray[np.int32]]) -> Tensor:
        """Scores of all items after each history (item indices, oldest first), [histories, items]."""
        ...


def reference_ranks(reference: Reference, dataset: Dataset, split: Split) -> Tensor:
    """[users] rank of every user's held-out item; `test` opens the test split."""
    inputs, targets = dataset.inputs(split), torch.from_numpy(dataset.targets(split))
    parts = []
    for start in range(0, dataset.n_users, _USERS_AT_A_TIME):
        users = range(start, min(start + _USERS_AT_A_TIME, dataset.n_users))
        scores = reference.score([inputs[user] for user in users])
        parts.append(ranks(scores, targets[users.start : users.stop]))
    return torch.cat(parts)


def evaluate(reference: Reference, dataset: Dataset, split: Split) -> dict[str, float]:
    """MRR, Recall@10 and NDCG@10 over the users of a (sub)set; `test` opens the test split."""
    return ranking_metrics(reference_ranks(reference, dataset, split))
