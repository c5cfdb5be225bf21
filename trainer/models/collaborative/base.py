"""The contract of a collaborative filtering (CF) model (Section 2.3.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class CollaborativeModel(nn.Module, ABC):
    """Encodes users and items of the interaction matrix.

    Attributes:
        representation: size of a user's and an item's vector.
        negatives: uniform negatives that `loss` wants per positive.
    """

    representation: int
    negatives: int

    @abstractmethod
    def users(self) -> Tensor:
        """[users, representation] e^user of all users."""

    @abstractmethod
    def items(self) -> Tensor:
        """[items, representation] e^item of all items."""

    @abstractmethod
    def loss_terms(self, users_n: Tensor, items_n: Tensor, negatives_nk: Tensor) -> Tensor:
        """[n] loss of each positive pair, its negatives included; L_cf is the mean of these."""
