"""What a catalogue's items have to do with each other: counted in the training part, and read in their texts.

together(a, b)   users with both in their training part
next(a, b)       Σ 1/gap over the places where b follows a in a training part, at most `gap` places later
text(a, b)       cosine of TF-IDF over title, categories and brand; over the sentences where a dataset has titles alone

No item is related to itself. Each relation keeps an item's strongest partners only, so a large catalogue's stay sparse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from trainer.cache import cached
from trainer.config import RELATIONS, PriorConfig
from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged
from trainer.data.text import tfidf
from trainer.errors import BadInput

RELATIONS_FILE = "relations.safetensors"
_TEXT_COLUMNS = ("title", "categories", "brand")
_VERSION = 1
_ITEMS_AT_A_TIME = 1024


@dataclass(frozen=True, eq=False)
class Relations:
    """Sparse [items, items] matrices in float32, their columns in rising order."""

    frequency: NDArray[np.int64]
    """[items] interactions in the training part, repeats included."""
    together: sparse.csr_matrix
    next: sparse.csr_matrix
    text: sparse.csr_matrix

    @property
    def n_items(self) -> int:
        """Items of the catalogue."""
        return len(self.frequency)

    def save(self, file: Path) -> None:
        """Write a safetensors file."""
        arrays = {"frequency": self.frequency}
        for name in RELATIONS:
            matrix = getattr(self, name)
            arrays |= {f"{name}.indptr": matrix.indptr, f"{name}.indices": matrix.indices, f"{name}.data": matrix.data}
        save_file(arrays, file)
        file.chmod(0o644)  # safetensors lets nobody else read it

    @classmethod
    def load(cls, file: Path) -> Relations:
        """Read what `save` wrote.

        Raises:
            BadInput: if the file is absent or damaged.
        """
        try:
            arrays = load_file(file)
            shape = (len(arrays["frequency"]),) * 2
            parts = (tuple(arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr")) for name in RELATIONS)
            return cls(arrays["frequency"], *(sparse.csr_matrix(part, shape=shape) for part in parts))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise BadInput(f"{file}: the relations of the items cannot be read ({error})") from error


def item_relations(dataset: Dataset, config: PriorConfig, cache: Path | str) -> Relations:
    """The relations of a (sub)set's items; its held-out items are not read.

    Args:
        dataset: the one that is trained on.
        config: how far apart what follows may be, and how many partners are kept.
        cache: root of `trainer.cache.cached`, a folder or a URL.
    """
    key = {
        "version": _VERSION,
        "data": dataset.training_digest(),
        "gap": config.gap,
        "partners": config.partners,
    }
    folder = cached(cache, "relations", key, lambda folder: relate(dataset, config).save(folder / RELATIONS_FILE))
    return Relations.load(folder / RELATIONS_FILE)


def relate(dataset: Dataset, config: PriorConfig) -> Relations:
    """The same without a cache."""
    frequency = np.bincount(dataset.train.values, minlength=dataset.n_items)
    bought, words = dataset.training_matrix(), tfidf(_texts(dataset))
    pairs = follow_ups(dataset.train, config.gap)
    followed = sparse.csr_matrix((pairs.weights, (pairs.before, pairs.after)), shape=(dataset.n_items,) * 2)
    scale = 1 / np.sqrt(frequency + 1)
    return Relations(
        frequency,
        _strongest(_products(sparse.csr_matrix(bought.T), bought), config.partners, scale),
        _strongest((followed[rows] for rows in _blocks(dataset.n_items)), config.partners, scale),
        _strongest(_products(words, sparse.csr_matrix(words.T)), config.partners, np.ones(dataset.n_items)),
    )


@dataclass(frozen=True, eq=False)
class FollowUps:
    """Pairs of different items of a row of which one follows the other: all [n]."""

    rows: NDArray[np.int64]
    before: NDArray[np.int32]
    after: NDArray[np.int32]
    weights: NDArray[np.float32]
    """1/gap."""


def follow_ups(rows: Ragged, gap: int) -> FollowUps:
    """Every pair whose places in its row are at most `gap` apart."""
    owners, found = rows.row_of_value, []
    for apart in range(1, gap + 1):
        before, after = rows.values[:-apart], rows.values[apart:]
        kept = (owners[:-apart] == owners[apart:]) & (before != after)
        found.append((owners[:-apart][kept], before[kept], after[kept], np.full(kept.sum(), 1 / apart, np.float32)))
    return FollowUps(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _texts(dataset: Dataset) -> list[str]:
    columns = [dataset.attributes[name] for name in _TEXT_COLUMNS if name in dataset.attributes]
    return [" ".join(row) for row in zip(*columns, strict=True)] if len(columns) > 1 else list(dataset.sentences)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + _ITEMS_AT_A_TIME) for start in range(0, count, _ITEMS_AT_A_TIME))


def _products(left: sparse.csr_matrix, right: sparse.csr_matrix) -> Iterator[sparse.csr_matrix]:
    """Left @ right by blocks of rows."""
    return (sparse.csr_matrix(left[rows] @ right) for rows in _blocks(left.shape[0]))


def _strongest(blocks: Iterator[sparse.csr_matrix], count: int, scale: NDArray[np.float64]) -> sparse.csr_matrix:
    """The `count` entries of each row whose value × scale of the column is largest; none on the diagonal."""
    first, parts = 0, []
    for block in blocks:
        found = block.tocoo()
        kept = (found.col != found.row + first) & (found.data != 0)
        rows, columns, values = found.row[kept], found.col[kept], found.data[kept]
        order = np.lexsort((columns, -values * scale[columns], rows))
        sizes = np.bincount(rows, minlength=block.shape[0])
        chosen = order[np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes) < count]
        part = (values[chosen].astype(np.float32), (rows[chosen], columns[chosen]))
        parts.append(sparse.csr_matrix(part, shape=block.shape))
        first += block.shape[0]
    whole = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
    whole.sort_indices()
    return whole
