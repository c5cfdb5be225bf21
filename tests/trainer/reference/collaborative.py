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


class LightGCN(MF):
    """MF over vectors that are propagated by Equations 7 and 8 of the paper, edge by edge.

    Args:
        trained: tensors by name.
        histories: items of each user in the training part.
        layers: K.
    """

    def __init__(self, trained: dict[str, Tensor], histories: list[list[int]], layers: int):
        super().__init__(trained)
        self.owned = [set(history) for history in histories]
        self.layers = layers

    def users(self) -> Tensor:
        return self._propagated()[: len(self.owned)]

    def items(self) -> Tensor:
        return self._propagated()[len(self.owned) :]

    def _propagated(self) -> Tensor:
        table = self.w["collaborative.table.weight"]
        users, items = table[: len(self.owned)], table[len(self.owned) :]
        buyers = [{u for u, owned in enumerate(self.owned) if i in owned} for i in range(len(items))]
        layers = [table]
        for _ in range(self.layers):
            zero = torch.zeros(table.shape[1], dtype=table.dtype)
            new_users = [
                sum((items[i] / (len(owned) * len(buyers[i])) ** 0.5 for i in owned), zero) for owned in self.owned
            ]
            new_items = [
                sum((users[u] / (len(self.owned[u]) * len(buyers[i])) ** 0.5 for u in buyers[i]), zero)
                for i in range(len(items))
            ]
            users, items = torch.stack(new_users), torch.stack(new_items)
            layers.append(torch.cat([users, items]))
        return torch.stack(layers).mean(0)


COLLABORATIVE = {"mf": MF, "ncf": NCF}
"""Those that are made from the trained tensors alone."""
