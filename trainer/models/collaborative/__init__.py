"""CF models by name. A new one is one file and one line in `COLLABORATIVE`."""

from __future__ import annotations

from trainer.config import CollaborativeConfig
from trainer.models.collaborative.base import CollaborativeModel
from trainer.models.collaborative.mf import MF
from trainer.models.collaborative.ncf import NCF

COLLABORATIVE: dict[str, type[MF] | type[NCF]] = {"mf": MF, "ncf": NCF}


def create_collaborative(config: CollaborativeConfig, n_users: int, n_items: int) -> CollaborativeModel | None:
    """The CF model that a config names; None for `none`."""
    if config.model == "none":
        return None
    options = {} if config.negatives is None else {"negatives": config.negatives}
    return COLLABORATIVE[config.model](n_users, n_items, config.dimension, **options)
