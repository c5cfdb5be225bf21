"""ItemKNN: items that the same users have (Deshpande and Karypis, ACM TOIS 2004; settings of RecBole's ItemKNN).

score(j | h) = Σ_i alike(i, j) over the items i of the history that are among the K nearest of j

alike(a, b)   Σ_u n_ua n_ub / (‖n_·a‖ ‖n_·b‖ + S): the cosine of the items' columns in the training part, repeats
              counted; 0 where a = b

Differs from RecBole's code: the history is what is asked for, not the training part alone, so that the validation item
counts before the test item; among equally near items the one of the lower index is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged

NEAREST = 100
"""K."""
SHRINK = 0.0
"""S; small cosines of rare items shrink with it."""
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class ItemKNN:
    """Similarities [items of a history, items that are scored], of which a column has at most K."""

    alike: sparse.csr_matrix

    @classmethod
    def fit(cls, dataset: Dataset) -> ItemKNN:
        """Count the training part."""
        counts = _counts(dataset.train, dataset.n_items)
        norms = np.sqrt(np.asarray(counts.power(2).sum(0)).ravel())
        together = sparse.csr_matrix(counts.T @ counts)
        together.setdiag(0)
        together.eliminate_zeros()
        rows = np.repeat(np.arange(dataset.n_items), np.diff(together.indptr))
        together.data = together.data / (norms[rows] * norms[together.indices] + SHRINK + _TINY)
        return cls(sparse.csr_matrix(_largest(together, NEAREST).T))

    def score(self, histories: Sequence[NDArray[np.int32]]) -> Tensor:
        """[histories, items]; an empty history scores 0 everywhere."""
        scores = _counts(Ragged.from_rows(histories), self.alike.shape[0]) @ self.alike
        return torch.from_numpy(scores.toarray())


def _counts(histories: Ragged, n_items: int) -> sparse.csr_matrix:
    """[histories, items] how often each item stands in each history."""
    entries = (np.ones(len(histories.values)), (histories.row_of_value, histories.values))
    return sparse.csr_matrix(entries, shape=(len(histories.lengths), n_items))


def _largest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """The matrix with its largest entries of each row alone."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    kept = order[np.arange(len(order)) - matrix.indptr[rows] < count]
    return sparse.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)
