"""The nearest items by L2: exactly, in tiles of bounded memory, or by an index.

Legend: n items, d dimensions, k neighbours, q items asked for at once.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from trainer.errors import BadInput

QUERIES = 1024
"""Items to ask for at once: enough for a product of matrices, few enough for one tile of distances."""

_TILE_BYTES = 2**27
_BYTES_PER_DISTANCE = 32  # the distance, its quotient, its rank, and a copy in the selection
_NEVER = np.iinfo(np.int64).max
_LISTS_PER_ROOT, _FEWEST_PER_LIST = 4, 40
_PROBED, _LOOKED_AT = 16, 2560  # lists that are read, and vectors in them, at least
_MOST_PASSED_OVER = 1024


class Search(Protocol):
    """Finds neighbours."""

    def find(self, items: NDArray[np.int64], forbidden: sparse.csr_matrix | None = None) -> NDArray[np.int64]:
        """The nearest other items of each, -1 where there are too few.

        Args:
            items: [q] which.
            forbidden: [q, n]; items with a non-zero entry are passed over.

        Returns:
            [q, k], nearest first.
        """


class ExactSearch:
    """All distances, tile by tile; the lower index first of equals.

    Equal distances are the rule, not the exception (counts of shared users), so distances count as equal within
    1.4e-9 of the longest squared length: rounding, which differs with the number of threads, must not choose.

    Args:
        vectors: [n, d].
        count: k, at most n - 1 are found.
        device: where to compute, in float64.
    """

    def __init__(self, vectors: NDArray[np.floating], count: int, device: str = "cpu") -> None:
        self._vectors = torch.from_numpy(vectors).to(device, torch.float64)
        self._count = min(count, len(vectors) - 1)
        self._squares = self._vectors.square().sum(1)
        # Irrational, so that no whole-number distance lies on the border of two steps.
        longest = float(self._squares.max()) if len(vectors) else 0.0
        self._resolution = (longest or 1.0) * math.sqrt(2) * 1e-9

    def find(self, items: NDArray[np.int64], forbidden: sparse.csr_matrix | None = None) -> NDArray[np.int64]:
        """See `Search`; q × `_TILE_BYTES` / `QUERIES` bytes are used beside the vectors."""
        n, device = len(self._vectors), self._vectors.device
        if self._count < 1:
            return np.empty((len(items), 0), np.int64)
        width = max(1, _TILE_BYTES // (_BYTES_PER_DISTANCE * QUERIES))
        asked = torch.from_numpy(items).to(device)
        passed = sparse.csc_matrix(forbidden) if forbidden is not None else None
        best = torch.full((len(items), self._count), _NEVER, device=device)
        for start in range(0, n, width):
            ranked = self._ranked(asked, start, min(start + width, n))
            if passed is not None:
                rows, columns = passed[:, start : start + width].nonzero()
                ranked[torch.from_numpy(rows).long(), torch.from_numpy(columns).long()] = _NEVER
            found = ranked.topk(min(self._count, ranked.shape[1]), largest=False, sorted=False).values
            best = torch.cat([best, found], 1).topk(self._count, largest=False).values
        return torch.where(best == _NEVER, -1, best % n).cpu().numpy()

    def _ranked(self, asked: Tensor, start: int, end: int) -> Tensor:
        """[q, end - start] distance and index in one integer that rises with both; the item itself comes never."""
        n = len(self._vectors)
        # |a - b|² without |a|², which is the same for a whole row.
        distances = self._squares[start:end] - (2 * self._vectors[asked]) @ self._vectors[start:end].T
        ranked = distances.div_(self._resolution).round_().long().mul_(n)
        ranked += torch.arange(start, end, device=asked.device)
        own = torch.nonzero((asked >= start) & (asked < end)).squeeze(1)
        ranked[own, asked[own] - start] = _NEVER
        return ranked


class IndexSearch:
    """An inverted file (IVF-Flat of faiss): only the lists whose centre is nearest are read, so some are missed.

    Args:
        vectors: [n, d].
        count: k, at most n - 1 are found.

    Raises:
        BadInput: if faiss is not installed.
    """

    def __init__(self, vectors: NDArray[np.floating], count: int) -> None:
        self._vectors = np.ascontiguousarray(vectors, np.float32)
        self._count = min(count, len(vectors) - 1)
        self._index = _inverted_file(self._vectors) if self._count > 0 else None

    def find(self, items: NDArray[np.int64], forbidden: sparse.csr_matrix | None = None) -> NDArray[np.int64]:
        """See `Search`; of items with many forbidden ones fewer than k may be found."""
        if self._index is None:
            return np.empty((len(items), 0), np.int64)
        passed_over = 1 if forbidden is None else 1 + int(forbidden.getnnz(axis=1).max(initial=0))
        fetched = min(self._count + min(passed_over, _MOST_PASSED_OVER), len(self._vectors))
        found = self._index.search(self._vectors[items], fetched)[1]
        bad = (found < 0) | (found == items[:, None])
        if forbidden is not None:
            rows = np.broadcast_to(np.arange(len(items))[:, None], found.shape)
            bad |= np.asarray(forbidden[rows.ravel(), found.clip(0).ravel()] != 0).reshape(found.shape)
        order = np.argsort(bad, axis=1, kind="stable")[:, : self._count]
        return np.where(np.take_along_axis(bad, order, 1), -1, np.take_along_axis(found, order, 1))


def _inverted_file(vectors: NDArray[np.float32]) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise BadInput(
            "negatives.search approximate: needs faiss, which is not installed; pip install 'darec-search[ann]'"
        ) from error
    n, dimension = vectors.shape
    lists = max(1, min(int(_LISTS_PER_ROOT * math.sqrt(n)), n // _FEWEST_PER_LIST))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dimension), dimension, lists)
    index.cp.max_points_per_centroid = 2 * _FEWEST_PER_LIST
    index.train(vectors)
    index.add(vectors)
    # Small catalogues have short lists, and need more of them for the same share of the true neighbours.
    index.nprobe = max(_PROBED, math.ceil(_LOOKED_AT * lists / n))
    return index
