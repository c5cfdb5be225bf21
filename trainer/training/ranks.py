"""Ranks of single users at a run's best evaluation, so that runs can be compared user by user."""

from __future__ import annotations

import math
import uuid
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

RANKS = "validation_ranks.safetensors"
_MOST_USERS = 20_000
"""Of larger data an even choice is kept, the same for all runs."""


def save_ranks(folder: Path, ranks: Tensor, mrr: float) -> None:
    """Keep the ranks [users] of an evaluation, whole or not at all; an earlier one's are replaced.

    Args:
        folder: of the run.
        ranks: rank of each user's item.
        mrr: of this evaluation, by which `load_ranks` knows it.
    """
    kept = np.unique(np.linspace(0, len(ranks) - 1, min(len(ranks), _MOST_USERS)).round().astype(np.int64))
    temporary = folder / f".{RANKS}.{uuid.uuid4().hex}"
    named = {"mrr": repr(mrr), "users": str(len(ranks))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"ranks": ranks[torch.from_numpy(kept)].float().contiguous()}, temporary, named)
        temporary.replace(folder / RANKS)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_ranks(folder: Path, mrr: float) -> tuple[NDArray[np.float64], int] | None:
    """The ranks that a run kept, and how many users there were.

    Args:
        folder: of the run.
        mrr: of the run's best evaluation.

    Returns:
        Ranks [kept users] and the number of users; None if none were kept of this very evaluation, as by runs of older
        versions.
    """
    try:
        with safe_open(folder / RANKS, framework="np") as file:
            named = file.metadata() or {}
            ranks = file.get_tensor("ranks").astype(np.float64)
        same = math.isclose(float(named["mrr"]), mrr, rel_tol=1e-9)
        return (ranks, int(named["users"])) if same else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
