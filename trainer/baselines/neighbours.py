"""Neighbours: what was bought together with the latest items, and what reads like them.

score(j | h) = Σ_i 2^-age(i) (together(i, j) + 0.3 alike(i, j)) over the items i of the history, the latest of age 0

together(a, b)   users with both in their training part / sqrt((n_a + 1)(n_b + 1)); 0 where a = b;
                 n_a interactions with a in the training part, repeats included
alike(a, b)      cosine of TF-IDF over title, categories and brand (`trainer.data.text.tfidf`)
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
from trainer.data.text import tfidf

TEXT_WEIGHT = 0.3
DECAY = 0.5
TEXT_COLUMNS = ("title", "categories", "brand")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Item-to-item similarities.

    Args:
        together: [items, items] co-occurrence cosine.
        terms: [items, terms] TF-IDF rows of unit length.
    """

    together: sparse.csr_matrix
    terms: sparse.csr_matrix

    @classmethod
    def fit(cls, dataset: Dataset) -> Neighbours:
        """Count the training part and weigh the items' words."""
        bought = dataset.training_matrix()
        together = sparse.csr_matrix(bought.T @ bought)
        together.setdiag(0)
        counts = np.bincount(dataset.train.values, minlength=dataset.n_items)
        scale = sparse.diags(1 / np.sqrt(counts + 1))
        columns = [dataset.attributes[name] for name in TEXT_COLUMNS if name in dataset.attributes]
        texts = [" ".join(row) for row in zip(*columns, strict=True)]
        return cls(sparse.csr_matrix(scale @ together @ scale), tfidf(texts))

    def score(self, histories: Sequence[NDArray[np.int32]]) -> Tensor:
        """[histories, items]; an empty history scores 0 everywhere."""
        lengths = np.array([len(history) for history in histories])
        items = np.concatenate([*histories, np.empty(0, np.int32)])
        ages = np.concatenate([np.arange(length - 1, -1, -1) for length in lengths] or [np.empty(0)])
        rows = np.repeat(np.arange(len(histories)), lengths)
        shape = (len(histories), self.together.shape[0])
        weights = sparse.csr_matrix((DECAY**ages, (rows, items)), shape=shape)
        scores = weights @ self.together + TEXT_WEIGHT * ((weights @ self.terms) @ self.terms.T)
        return torch.from_numpy(scores.toarray())
