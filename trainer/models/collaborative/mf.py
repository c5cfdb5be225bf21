"""Matrix factorisation with Bayesian personalised ranking (Rendle et al., UAI 2009; Koren et al. [26])."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from trainer.models.collaborative.base import CollaborativeModel


class MF(CollaborativeModel):
    """score(u, i) = e_u · e_i; loss −log σ(score(u, i) − score(u, j)), j a uniform negative.

    Args:
        n_users: users.
        n_items: items.
        dimension: size of both embeddings, which is the representation.
        negatives: negatives per positive; the paper's loss takes one.
    """

    def __init__(self, n_users: int, n_items: int, dimension: int, negatives: int = 1) -> None:
        super().__init__()
        self.representation = dimension
        self.negatives = negatives
        self.user = nn.Embedding(n_users, dimension)
        self.item = nn.Embedding(n_items, dimension)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def users(self) -> Tensor:
        return self.user.weight

    def items(self) -> Tensor:
        return self.item.weight

    def loss_terms(self, users_n: Tensor, items_n: Tensor, negatives_nk: Tensor) -> Tensor:
        user_n1d = self.user(users_n)[:, None]
        margin_nk = (user_n1d * (self.item(items_n)[:, None] - self.item(negatives_nk))).sum(-1)
        return -logsigmoid(margin_nk).mean(1)
