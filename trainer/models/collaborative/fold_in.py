"""The CF vector of a user who was not trained on, from the history alone.

The vectors of the trained users are what BPR or cross-entropy made of them, not least-squares solutions: solving for a
new user's vector as matrix factorisation does (Hu et al., ICDM 2008) gives one of another length, which the model's
projection has never seen. So the map from histories to vectors is learned from the trained users, in closed form and
the same for all CF models:

    e ≈ ē + (x − x̄) W,    W = (Xᵀ X + α I)⁻¹ Xᵀ E

over centred X and E; x holds the mean of the item vectors of the history and their sum divided by √n (as LightGCN
weighs them), α is `_RIDGE` of the mean of the diagonal of Xᵀ X.

Legend: U users, n items of a history, d representation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_RIDGE = 0.01


@dataclass(frozen=True)
class FoldIn:
    """An affine map from the items of a history to a user's CF vector. Make one with `fit`."""

    weight: Tensor
    """[2d, d]."""
    bias: Tensor
    """[d]."""

    @classmethod
    def fit(
        cls, item_vectors: Tensor, values: NDArray[np.integer], lengths: NDArray[np.int64], user_vectors: Tensor
    ) -> FoldIn:
        """Learn it from trained users.

        Args:
            item_vectors: [items, d].
            values: items of all histories, one history after the other.
            lengths: [U] items of each, at least one.
            user_vectors: [U, d] what the histories should give.
        """
        x = features(item_vectors, values, lengths).double()
        e = user_vectors.detach().cpu().double()
        x_mean, e_mean = x.mean(0), e.mean(0)
        x, e = x - x_mean, e - e_mean
        gram = x.T @ x
        ridge = _RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
        weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), x.T @ e)
        return cls(weight.float(), (e_mean - x_mean @ weight).float())

    def vectors(self, item_vectors: Tensor, values: NDArray[np.integer], lengths: NDArray[np.int64]) -> Tensor:
        """[U, d] CF vectors of the users of these histories, on the CPU; the arguments are those of `fit`."""
        return features(item_vectors, values, lengths) @ self.weight + self.bias


def features(item_vectors: Tensor, values: NDArray[np.integer], lengths: NDArray[np.int64]) -> Tensor:
    """[U, 2d] mean of the item vectors of each history, and their sum over √n, on the CPU."""
    table = item_vectors.detach().cpu().float()
    rows = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    read = table[torch.from_numpy(values.astype(np.int64))]
    sums = torch.zeros(len(lengths), table.shape[1]).index_add_(0, rows, read)
    counts = torch.from_numpy(lengths.astype(np.float32))[:, None]
    return torch.cat([sums / counts, sums / counts.sqrt()], 1)
