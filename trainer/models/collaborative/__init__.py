"""CF models by name. A new one is one file and one line in `COLLABORATIVE`."""

from __future__ import annotations

from trainer.config import CollaborativeConfig
from trainer.models.collaborative.base import CollaborativeModel, Interactions
from trainer.models.collaborative.lightgcn import LightGCN
from trainer.models.collaborative.mf import MF
from trainer.models.collaborative.ncf import NCF

COLLABORATIVE: dict[str, type[CollaborativeModel]] = {"mf": MF, "ncf": NCF, "lightgcn": LightGCN}


def create_collaborative(
    config: CollaborativeConfig, n_users: int, n_items: int, interactions: Interactions | None = None
) -> CollaborativeModel | None:
    """The CF model that a config names; None for `none`.

    Args:
        config: which one, and its sizes.
        n_users: users.
        n_items: items.
        interactions: users and items of the training part; not needed to restore a trained model.
    """
    if config.model == "none":
        return None
    return COLLABORATIVE[config.model].create(config, n_users, n_items, interactions)
