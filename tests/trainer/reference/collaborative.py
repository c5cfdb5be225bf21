"""CF models, one pair at a time: the vectors that DARec takes from them and their own losses."""

from __future__ import annotations

import torch
from torch import Tensor


class MF:
    """Matrix factorisation with BPR. A CF model whose vectors are made otherwise overrides `users` and `items`."""

    def __init__(self, trained: dict[str, Tensor]):
        self.w = trained

    def users(self) -> Tensor:
        """[users, representation]."""
        return self.w["collaborative.user.weight"]

    def items(self) -> Tensor:
        """[items, representation]."""
        return self.w["collaborative.item.weight"]

    def term(self, user: int, item: int, negatives: list[int]) -> Tensor:
        u, items = self.users()[user], self.items()
        return torch.stack([-torch.log(torch.sigmoid(u @ items[item] - u @ items[j])) for j in negatives]).mean()


class NCF(MF):
    """NeuMF with binary cross-entropy."""

    def logit(self, user: int, item: int) -> Tensor:
        u, v = self.users()[user], self.items()[item]
        half = len(u) // 2
        x = torch.cat([u[half:], v[half:]])
        for layer in ("0", "2"):
            x = torch.relu(self.w[f"collaborative.mlp.{layer}.weight"] @ x + self.w[f"collaborative.mlp.{layer}.bias"])
        features = torch.cat([u[:half] * v[:half], x])
        return (self.w["collaborative.score.weight"] @ features + self.w["collaborative.score.bias"])[0]

    def term(self, user: int, item: int, negatives: list[int]) -> Tensor:
        terms = [-torch.log(torch.sigmoid(self.logit(user, item)))]
        terms += [-torch.log(1 - torch.sigmoid(self.logit(user, j))) for j in negatives]
        return torch.stack(terms).mean()


COLLABORATIVE = {"mf": MF, "ncf": NCF}
