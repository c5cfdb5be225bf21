"""Ranking metrics, one target a user. Which items are ranked is decided elsewhere (`ranking.seen_before`).

Legend: n users, B items of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

CUTOFF = 10


class RunningRanks:
    """Ranks among items whose scores come block by block, so that [n, items] is never held.

    rank = 1 + #higher + ½ #ties. A NaN counts as higher than every score, so that a broken model ranks last and never
    first.

    Args:
        scores_nb: scores of the block that holds every target, larger is better.
        targets_n: places of the targets within that block.
    """

    def __init__(self, scores_nb: Tensor, targets_n: Tensor) -> None:
        self._target_scores = scores_nb.gather(1, targets_n.long().unsqueeze(1))
        self._items = 0
        # The target ties with itself.
        self._lower = torch.zeros(len(scores_nb), dtype=torch.int64, device=scores_nb.device)
        self._ties = self._lower - 1
        self.add(scores_nb)

    def add(self, scores_nb: Tensor) -> None:
        """Count another block."""
        self._items += scores_nb.shape[1]
        # Sums in int32 are several times faster than in the default int64, and a block is far smaller than 2^31.
        self._lower += (scores_nb < self._target_scores).sum(1, dtype=torch.int32)
        self._ties += (scores_nb == self._target_scores).sum(1, dtype=torch.int32)

    def ranks(self) -> Tensor:
        """[n] ranks in 1 … items among all that was counted, in float64."""
        higher = self._items - 1 - self._lower - self._ties
        return (1 + higher + self._ties.double() / 2).clamp(max=self._items)


def ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target among all items: 1 + #higher + ½ #ties, as `RunningRanks` counts.

    Args:
        scores: [n, items], larger is better.
        targets: [n] item indices.

    Returns:
        [n] ranks in 1 … items, in float64.
    """
    return RunningRanks(scores, targets).ranks()


def per_user_metrics(ranks: Tensor, cutoffs: Sequence[int] = ()) -> dict[str, Tensor]:
    """Metrics of every user, so that two runs can be compared by a paired test.

    With one target a user the hit rate HR@k and Recall@k are the same number; it is called `recall@k` everywhere.

    Args:
        ranks: [n] ranks from 1.
        cutoffs: each k adds `recall@k`, `ndcg@k` and `mrr@k` = 1 / rank within the first k.

    Returns:
        `mrr` = 1 / rank over the whole ranking, `recall@10`, `ndcg@10` = 1 / log2(rank + 1) within the first ten, and
        those of the cutoffs; each [n].
    """
    found = {"mrr": 1 / ranks}
    for k in (CUTOFF, *cutoffs):
        hit = (ranks <= k).to(ranks.dtype)
        found |= {f"recall@{k}": hit, f"ndcg@{k}": hit / torch.log2(ranks + 1)}
    for k in cutoffs:
        found[f"mrr@{k}"] = found[f"recall@{k}"] / ranks
    return found


def ranking_metrics(ranks: Tensor, cutoffs: Sequence[int] = ()) -> dict[str, float]:
    """Means of `per_user_metrics` over the users.

    Args:
        ranks: [n] ranks from 1, n at least 1.
        cutoffs: as there.

    Raises:
        ValueError: if there is no rank to average.
    """
    if ranks.numel() == 0:
        raise ValueError("ranking metrics need at least one rank")
    return {name: float(values.double().mean()) for name, values in per_user_metrics(ranks, cutoffs).items()}


def paired_p_value(one: ArrayLike, other: ArrayLike) -> float | None:
    """Two-sided p-value of a paired t-test between the per-user metrics of two models.

    Args:
        one: [n] metric of each user.
        other: [n] the same metric of the same users, in the same order.

    Returns:
        None where there is nothing to test: fewer than two users, or no difference.
    """
    from scipy import stats  # a second to import, and a training run never tests

    one, other = np.asarray(one), np.asarray(other)
    if len(one) < 2 or (one == other).all():
        return None
    p_value = float(stats.ttest_rel(one, other).pvalue)
    return None if math.isnan(p_value) else p_value
