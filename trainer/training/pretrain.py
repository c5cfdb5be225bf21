"""Pretraining of a CF model that stays frozen afterwards (Fig. 14)."""

from __future__ import annotations

import numpy as np
import torch

from trainer.config import RunConfig
from trainer.data.ragged import Ragged
from trainer.models.collaborative.base import CollaborativeModel

_BATCH = 1024


def pretrain_collaborative(model: CollaborativeModel, train: Ragged, config: RunConfig, device: str) -> None:
    """Fit a CF model to the training part by Adam, in place; it stays frozen.

    Args:
        model: the CF model, on `device`.
        train: training part of every user.
        config: epochs and learning rate (`model.collaborative`), seed.
        device: where to train.
    """
    settings = config.model.collaborative
    n_items = model.items().shape[0]
    users, items = train.row_of_value, train.values.astype(np.int64)
    rng = np.random.default_rng([config.seed, 1])
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.pretrain_learning_rate)
    for _ in range(settings.pretrain_epochs):
        order = rng.permutation(len(items))
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            negatives = rng.integers(0, n_items, (len(chosen), model.negatives))
            batch = (torch.from_numpy(array).to(device) for array in (users[chosen], items[chosen], negatives))
            loss = model.loss_terms(*batch).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    model.requires_grad_(False)
