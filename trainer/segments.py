"""Metrics by segment: who has a short history, whose next item is cold.

A mean over all users hides both: a model of identities is lost where the target was never trained on, a model of texts
need not be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.metrics import ranking_metrics

HISTORY_LENGTH = {"1-4": 1, "5-9": 5, "10-19": 10, "20+": 20}
"""Segments by the number of items before the target, each with its smallest."""

TARGET_FREQUENCY = {"cold": 0, "rare": 1, "warm": 10}
"""Segments by the target's interactions in the training part: none, 1 to 9, 10 and more."""


def segment_metrics(
    values: NDArray[np.integer], bounds: Mapping[str, int], ranks: Tensor, cutoffs: Sequence[int] = ()
) -> dict[str, dict[str, float]]:
    """Number of users and mean metrics of each segment.

    Args:
        values: [n] what the users are divided by, at least the smallest bound.
        bounds: the smallest value of each segment, rising.
        ranks: [n] rank of each user's target.
        cutoffs: as in `trainer.metrics.per_user_metrics`.

    Returns:
        By segment `users`, and where there are any the metrics.
    """
    places = np.searchsorted(list(bounds.values()), values, side="right") - 1
    found: dict[str, dict[str, float]] = {}
    for place, name in enumerate(bounds):
        mine = ranks[torch.from_numpy(places == place)]
        found[name] = {"users": len(mine), **(ranking_metrics(mine, cutoffs) if len(mine) else {})}
    return found
