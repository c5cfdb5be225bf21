r"""Hard negatives (Appendix A of the paper): alike, yet never together.

N_j = (nearest items by text ∪ nearest items by matrix factorisation) \ items that share a user with j

Everything comes from the item texts and the training part, block by block of items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from trainer.cache import cached
from trainer.config import NegativesConfig
from trainer.data.dataset import Dataset
from trainer.data.item_vectors import encoder_digest, factorise, text_vectors
from trainer.data.nearest import QUERIES, ExactSearch, IndexSearch, Search
from trainer.data.ragged import Ragged, save_parts
from trainer.device import default_device

FEWEST = 5
"""Nearest items that are taken at least, by each distance."""

INDEXED_DIMENSION = 128
"""Dimensions of TF-IDF and factorisation at most where an index searches: half a GiB for a million items each."""

_VERSION = 3
_FILE = "negatives.parquet"


def hard_negatives(dataset: Dataset, config: NegativesConfig, cache: Path | str, device: str | None = None) -> Ragged:
    """N_j of every item j, rising item indices; a row may be empty.

    Each distance gives the nearest ⌈fraction × items⌉, `most` at most. Where the fraction is fewer than `FEWEST` (small
    catalogues, whose neighbours nearly all share a user), it gives the nearest `FEWEST` of those that share no user
    with j. An item without a training interaction has no factorisation vector, so only its text counts.

    Args:
        dataset: the (sub)set that is trained on; its held-out items are not read.
        config: encoder, fraction, rank and kind of search.
        cache: root of `trainer.cache.cached`, a folder or a URL.
        device: where to compute, for a first time.

    Raises:
        BadInput: if the encoder cannot be loaded, or an index is asked for and its library is missing.
    """
    key = {
        "version": _VERSION,
        "data": dataset.training_digest(),
        "config": config.model_dump(mode="json"),
        "encoder": encoder_digest(config.encoder),
    }
    device = device or default_device()
    folder = cached(cache, "negatives", key, lambda folder: save_parts(folder / _FILE, _mine(dataset, config, device)))
    return Ragged.load(folder / _FILE)


def _mine(dataset: Dataset, config: NegativesConfig, device: str) -> Iterator[Ragged]:
    bought = dataset.training_matrix()
    trained = np.flatnonzero(bought.getnnz(axis=0))
    by_text, by_factors = _searches(dataset, bought[:, trained], config, device)
    small = config.fraction * dataset.n_items < FEWEST
    return _blocks(bought, trained, by_text, by_factors, small)


def _searches(
    dataset: Dataset, bought: sparse.csr_matrix, config: NegativesConfig, device: str
) -> tuple[Search, Search]:
    """By text over all items, by factors over the columns of `bought`."""
    count = min(max(math.ceil(config.fraction * dataset.n_items), FEWEST), config.most)
    if config.search == "exact":
        by_text = ExactSearch(text_vectors(dataset.sentences, config.encoder, device), count, device)
        return by_text, ExactSearch(factorise(bought, config.mf_dimension), count, device)
    terms = text_vectors(dataset.sentences, config.encoder, device, INDEXED_DIMENSION, np.float32)
    by_index = IndexSearch(terms, count)
    return by_index, IndexSearch(factorise(bought, min(config.mf_dimension, INDEXED_DIMENSION), np.float32), count)


def _blocks(
    bought: sparse.csr_matrix, trained: NDArray[np.int64], by_text: Search, by_factors: Search, small: bool
) -> Iterator[Ragged]:
    """N_j of neighbouring items.

    Args:
        bought: [users, items], 1 where the user has the item.
        trained: items that anybody has, in the order of `by_factors`.
        by_text: searches all items.
        by_factors: searches `trained`.
        small: whether items that share a user are passed over before the nearest are counted.
    """
    n_items = bought.shape[1]
    users_of = sparse.csr_matrix(bought.T)
    place = np.full(n_items, -1)
    place[trained] = np.arange(len(trained))
    for start in range(0, n_items, QUERIES):
        items = np.arange(start, min(start + QUERIES, n_items))
        together = sparse.csr_matrix(users_of[items] @ bought)
        texts = by_text.find(items, together if small else None)
        rows = np.flatnonzero(place[items] >= 0)
        found = by_factors.find(place[items[rows]], together[rows][:, trained] if small else None)
        factors = np.full((len(items), found.shape[1]), -1)
        factors[rows] = np.where(found >= 0, trained[found], -1)
        yield _without(np.hstack([texts, factors]), together)


def _without(found: NDArray[np.int64], together: sparse.csr_matrix) -> Ragged:
    """The distinct items of each row of `found`, [q, any], rising, less those with an entry in `together`, [q, n]."""
    rows, n_items = together.shape
    keys = (np.arange(rows)[:, None] * n_items + found)[found >= 0]
    shared = np.repeat(np.arange(rows), np.diff(together.indptr)) * n_items + together.indices
    # `np.unique` hashes before it sorts, which takes ten times as long.
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) != 0]
    keys = keys[~np.isin(keys, shared, assume_unique=True)]
    return Ragged.from_lengths(keys % n_items, np.bincount(keys // n_items, minlength=rows))
