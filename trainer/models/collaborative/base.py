"""The contract of a collaborative filtering (CF) model (Section 2.3.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import CollaborativeConfig

Interactions = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]
"""Users and items of the training part, [n] each, one entry an interaction."""


class CollaborativeModel(nn.Module, ABC):
    """Encodes users and items of the interaction matrix.

    Attributes:
        representation: size of a user's and an item's vector.
        negatives: uniform negatives that `loss_terms` wants per positive.
    """

    representation: int
    negatives: int

    @classmethod
    def create(cls, config: CollaborativeConfig, n_users: int, n_items: int, interactions: Interactions | None) -> Self:
        """The model that a config describes.

        Args:
            config: its sizes.
            n_users: users.
            n_items: items.
            interactions: the training part, for models that are built on it; absent where a trained model is restored.
        """
        return cls(n_users, n_items, config.dimension, **cls.chosen_negatives(config))

    @staticmethod
    def chosen_negatives(config: CollaborativeConfig) -> dict[str, int]:
        """The option `negatives`, where the config names it."""
        return {} if config.negatives is None else {"negatives": config.negatives}

    @abstractmethod
    def users(self) -> Tensor:
        """[users, representation] e^user of all users."""

    @abstractmethod
    def items(self) -> Tensor:
        """[items, representation] e^item of all items."""

    @abstractmethod
    def loss_terms(self, users_n: Tensor, items_n: Tensor, negatives_nk: Tensor) -> Tensor:
        """[n] loss of each positive pair, its negatives included; L_cf is the mean of these."""
