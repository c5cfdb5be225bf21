"""LightGCN (He et al., SIGIR 2020): embeddings smoothed over the bipartite graph of the training part.

Legend: U users, I items, E the (U + I) × d table of learned embeddings, user rows first, Â = D^-½ A D^-½ the normalised
adjacency of the graph in which a user and an item are joined when the user has the item. The representation is the
propagated table P = (E + Â E + … + Â^K E) / (K + 1).
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from trainer.config import CollaborativeConfig
from trainer.models.collaborative.base import CollaborativeModel, Interactions


class LightGCN(CollaborativeModel):
    """score(u, i) = P_u · P_i; loss −log σ(score(u, i) − score(u, j)), j a uniform negative.

    The paper's L2 term is left to the optimiser's weight decay. What is saved holds P beside E, so that a model without
    the graph (an export) recommends; only training needs the interactions.

    Args:
        n_users: users.
        n_items: items.
        dimension: size d of the embeddings, which is the representation.
        negatives: negatives per positive; the paper's loss takes one.
        layers: K, graph convolutions.
        interactions: users and items of the training part, [n] each; repeats count once. Without them the propagated
            table must be loaded and stays as it is.
    """

    propagated: Tensor
    row_starts: Tensor
    columns: Tensor
    values: Tensor | None
    """None, as the other two, without the graph."""

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dimension: int,
        negatives: int = 1,
        layers: int = 3,
        interactions: Interactions | None = None,
    ) -> None:
        super().__init__()
        self.representation = dimension
        self.negatives = negatives
        self.layers = layers
        self.n_users, self.n_items = n_users, n_items
        self.table = nn.Embedding(n_users + n_items, dimension)
        nn.init.normal_(self.table.weight, std=0.1)
        # Â in CSR as three plain tensors: PyTorch can neither copy nor save a sparse one.
        graph = (None,) * 3 if interactions is None else normalised_graph(interactions, n_users, n_items)
        for name, part in zip(("row_starts", "columns", "values"), graph, strict=True):
            self.register_buffer(name, part, persistent=False)
        self.register_buffer("propagated", torch.zeros(n_users + n_items, dimension))
        self._current: tuple[tuple[int, bool], Tensor] | None = None
        self.register_state_dict_pre_hook(_propagate_before_saving)

    @classmethod
    def create(cls, config: CollaborativeConfig, n_users: int, n_items: int, interactions: Interactions | None) -> Self:
        return cls(
            n_users,
            n_items,
            config.dimension,
            layers=config.propagation_layers,
            interactions=interactions,
            **cls.chosen_negatives(config),
        )

    def users(self) -> Tensor:
        return self._propagate()[: self.n_users]

    def items(self) -> Tensor:
        return self._propagate()[self.n_users :]

    def loss_terms(self, users_n: Tensor, items_n: Tensor, negatives_nk: Tensor) -> Tensor:
        users, items = self.users(), self.items()
        margin_nk = (users[users_n][:, None] * (items[items_n][:, None] - items[negatives_nk])).sum(-1)
        return -logsigmoid(margin_nk).mean(1)

    def _propagate(self) -> Tensor:
        """P, computed once for each value of E: once a step in training, once an evaluation."""
        if self.values is None:
            return self.propagated
        weight = self.table.weight
        differentiable = torch.is_grad_enabled() and weight.requires_grad
        # PyTorch counts the in-place changes of a tensor: by an optimiser's step, or by loading.
        key = (weight._version, differentiable)
        if self._current is None or self._current[0] != key or self._current[1].device != weight.device:
            self._current = (key, self._compute(weight, self.values))
            if differentiable:
                # The backward pass frees what this was computed from, so the next part of a batch computes it anew.
                self._current[1].register_hook(self._forget)
        return self._current[1]

    def _compute(self, weight: Tensor, values: Tensor) -> Tensor:
        graph = _sparse(self.row_starts, self.columns, values)
        with torch.autocast(weight.device.type, enabled=False):
            layer = total = weight
            for _ in range(self.layers):
                layer = _Convolution.apply(graph, layer)
                total = total + layer
            return total / (self.layers + 1)

    def _forget(self, grad: Tensor) -> None:
        self._current = None


class _Convolution(torch.autograd.Function):
    """Â X. Â is symmetric, so that the gradient is Â G; sparse autograd would transpose it every time."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, table: Tensor) -> Tensor:
        ctx.graph = graph
        return graph @ table

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.graph @ grads[0]


def normalised_graph(interactions: Interactions, n_users: int, n_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Â, [U + I, U + I], in CSR: where each row starts, its columns, its values.

    Rows of users and items without an interaction are empty.
    """
    users, items = interactions
    pairs = np.unique(users.astype(np.int64) * n_items + items)
    users, items = pairs // n_items, pairs % n_items + n_users
    # User rows come first and `pairs` is sorted by user and item; the item rows hold the same edges by item and user.
    by_item = np.lexsort((users, items))
    columns = np.concatenate([items, users[by_item]])
    degrees = np.bincount(np.concatenate([users, items]), minlength=n_users + n_items)
    rows = np.repeat(np.arange(len(degrees)), degrees)
    values = (degrees[rows] * degrees[columns]).astype(np.float64) ** -0.5
    row_starts = np.concatenate([[0], np.cumsum(degrees)])
    return torch.from_numpy(row_starts), torch.from_numpy(columns), torch.from_numpy(values).float()


def _sparse(row_starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    size = len(row_starts) - 1
    with warnings.catch_warnings():
        # PyTorch calls CSR a beta; on a CPU it is five times as fast as COO.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(row_starts, columns, values, size=(size, size), check_invariants=False)


def _propagate_before_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    if isinstance(module, LightGCN) and module.values is not None:
        with torch.no_grad():
            module.propagated.copy_(module._propagate())
