"""Ranking metrics over all items, one target a user. No item is masked, not even those already in the history."""

from __future__ import annotations

import torch
from torch import Tensor

CUTOFF = 10


def ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target among all items: 1 + #higher + ½ #ties.

    A NaN counts as higher than every score, so that a broken model ranks last and never first.

    Args:
        scores: [n, items], larger is better.
        targets: [n] item indices.

    Returns:
        [n] ranks in 1 … items, in float32 (exact up to 2^23 items).
    """
    target_scores = scores.gather(1, targets.long().unsqueeze(1))
    not_lower = (~(scores < target_scores)).sum(1)
    ties = (scores == target_scores).sum(1)
    higher = not_lower - ties
    rank = 1 + higher.float() + (ties.float() - 1) / 2
    return rank.clamp(max=scores.shape[1])


def per_user_metrics(ranks: Tensor) -> dict[str, Tensor]:
    """Metrics of every user, so that two runs can be compared by a paired test.

    Args:
        ranks: [n] ranks from 1.

    Returns:
        `mrr` = 1 / rank over the whole ranking, `recall@10`, `ndcg@10` = 1 / log2(rank + 1) within the first ten;
        each [n].
    """
    hit = (ranks <= CUTOFF).float()
    return {"mrr": 1 / ranks, f"recall@{CUTOFF}": hit, f"ndcg@{CUTOFF}": hit / torch.log2(ranks + 1)}


def ranking_metrics(ranks: Tensor) -> dict[str, float]:
    """Means of `per_user_metrics` over the users.

    Args:
        ranks: [n] ranks from 1, n at least 1.

    Raises:
        ValueError: if there is no rank to average.
    """
    if ranks.numel() == 0:
        raise ValueError("ranking metrics need at least one rank")
    return {name: float(values.double().mean()) for name, values in per_user_metrics(ranks).items()}
