"""What a reference is, and how it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset import Dataset, Split
from trainer.data.ragged import Ragged
from trainer.metrics import ranking_metrics, ranks
from trainer.ranking import leave_out, seen_before

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


def ranked_by(
    reference: Reference, histories: Ragged, targets: NDArray[np.integer], *, exclude_seen: bool = False
) -> tuple[Tensor, Tensor]:
    """[users] rank and log-likelihood of each target, the latter under a softmax of the scores as they are."""
    parts = []
    for scores, wanted in _scored(reference, histories, targets, exclude_seen):
        own = scores.gather(1, wanted[:, None])[:, 0]
        parts.append((ranks(scores, wanted), (own - scores.logsumexp(1)).double()))
    found, likelihoods = (torch.cat(part) for part in zip(*parts, strict=True))
    return found, likelihoods


def reference_ranks(reference: Reference, dataset: Dataset, split: Split, *, exclude_seen: bool = False) -> Tensor:
    """[users] rank of every user's held-out item; `test` opens the test split."""
    scored = _scored(reference, dataset.inputs(split), dataset.targets(split), exclude_seen)
    return torch.cat([ranks(scores, wanted) for scores, wanted in scored])


def _scored(
    reference: Reference, histories: Ragged, targets: NDArray[np.integer], exclude_seen: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores of all items and the target, for some users at a time."""
    for start in range(0, len(histories), _USERS_AT_A_TIME):
        users = np.arange(start, min(start + _USERS_AT_A_TIME, len(histories)))
        rows, wanted = histories.take(users), targets[users]
        scores = reference.score(list(rows))
        # A reference may keep the scores that it hands out.
        scores = leave_out(scores.clone(), seen_before(rows, wanted)) if exclude_seen else scores
        yield scores, torch.from_numpy(wanted.astype(np.int64))


def evaluate(reference: Reference, dataset: Dataset, split: Split) -> dict[str, float]:
    """MRR, Recall@10 and NDCG@10 over the users of a (sub)set; `test` opens the test split."""
    return ranking_metrics(reference_ranks(reference, dataset, split))
