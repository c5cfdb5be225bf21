"""Neural collaborative filtering: NeuMF (He et al., WWW 2017 [16])."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from trainer.models.collaborative.base import CollaborativeModel


class NCF(CollaborativeModel):
    """NeuMF: logit = w · [GMF(u, i); MLP(u, i)], trained by binary cross-entropy.

    The representation is the GMF and the MLP embedding side by side.

    Args:
        n_users: users.
        n_items: items.
        dimension: embedding size of each of the two towers.
        negatives: uniform negatives per positive.
    """

    def __init__(self, n_users: int, n_items: int, dimension: int, negatives: int = 4) -> None:
        super().__init__()
        self.dimension = dimension
        self.representation = 2 * dimension
        self.negatives = negatives
        self.user = nn.Embedding(n_users, 2 * dimension)
        self.item = nn.Embedding(n_items, 2 * dimension)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        half = max(dimension // 2, 1)
        self.mlp = nn.Sequential(nn.Linear(2 * dimension, dimension), nn.ReLU(), nn.Linear(dimension, half), nn.ReLU())
        self.score = nn.Linear(dimension + half, 1)

    def users(self) -> Tensor:
        return self.user.weight

    def items(self) -> Tensor:
        return self.item.weight

    def logits(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits of pairs, of any shape that both arguments share."""
        gmf_u, mlp_u = self.user(users).split(self.dimension, -1)
        gmf_i, mlp_i = self.item(items).split(self.dimension, -1)
        features = torch.cat([gmf_u * gmf_i, self.mlp(torch.cat([mlp_u, mlp_i], -1))], -1)
        return torch.as_tensor(self.score(features).squeeze(-1))

    def loss_terms(self, users_n: Tensor, items_n: Tensor, negatives_nk: Tensor) -> Tensor:
        candidates = torch.cat([items_n[:, None], negatives_nk], 1)
        labels = torch.zeros(candidates.shape, device=candidates.device)
        labels[:, 0] = 1
        logits = self.logits(users_n[:, None].expand_as(candidates), candidates)
        return binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
