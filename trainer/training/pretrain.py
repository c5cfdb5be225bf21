"""What is trained before the first epoch: a CF model (Fig. 14 has it frozen afterwards), the weights of a prior."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from trainer.config import RunConfig
from trainer.counting import PriorCounter
from trainer.data.ragged import Ragged
from trainer.models.collaborative.base import CollaborativeModel
from trainer.models.prior import Prior

_BATCH = 1024
_PRIOR_LOGITS = 2**21
_PRIOR_ROWS = 512
_PRIOR_LEARNING_RATE = 0.05


def pretrain_collaborative(model: CollaborativeModel, train: Ragged, config: RunConfig, device: str) -> None:
    """Fit a CF model to the training part by Adam, in place; it stays frozen unless it is to go on with the model.

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
    model.requires_grad_(settings.training != "frozen")


def fit_prior(prior: Prior, counter: PriorCounter, train: Ragged, config: RunConfig, device: str) -> None:
    """Fit the weights of a prior by itself to the training part, by Adam, in place: what the model learns is beside it.

    Args:
        prior: on `device`.
        counter: looks the histories up.
        train: training part of every user.
        config: steps (`model.prior`), longest history, seed.
        device: where to train.
    """
    assert config.model.prior is not None
    window = train.newest(config.data.max_items + 1)
    users = np.flatnonzero(window.lengths >= 2)
    rng = np.random.default_rng([config.seed, 2])
    optimizer = torch.optim.Adam(prior.parameters(), lr=_PRIOR_LEARNING_RATE)
    rows = int(np.clip(_PRIOR_LOGITS // prior.log_frequency_i.numel(), 1, _PRIOR_ROWS))
    for _ in range(config.model.prior.fit_steps if len(users) else 0):
        order = rng.permutation(users)
        ends = np.cumsum(window.lengths[order] - 1)
        chosen = order[: max(int(np.searchsorted(ends, rows, "right")), 1)]
        inputs, targets = window.take(chosen).shifted()
        given = counter.of_prefixes(chosen, inputs.lengths, inputs.values.astype(np.int64))
        wanted = torch.from_numpy(targets[:rows].astype(np.int64)).to(device)
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(prior(given.to(device), 0, len(wanted)), wanted).backward()
        optimizer.step()
