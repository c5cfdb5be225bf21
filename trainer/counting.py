"""What the counts of the training part say about histories, entry by entry: the input of `trainer.models.prior`.

For a history h and an item j that is not in it, with the items i of the history, the latest of age 0:

x_together(j | h)   Σ_i decay^age(i) together(i, j) / sqrt((n_i + 1)(n_j + 1))
x_next(j | h)       the same with next(i, j)
x_text(j | h)       Σ_i decay^age(i) text(i, j)

n counts interactions. An item of the history has none of these: what people buy again is not what others buy with it.

In training every history is part of what was counted, so its true next item would be told by the user's own pair. Hence
leave-one-out: together(i, j), next(i, j) and n_j are taken without the user in hand, as they are for the held-out item
of every evaluation. n_i is not, since an evaluation has it, too.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from trainer.config import RELATIONS, PriorConfig
from trainer.data.ragged import Ragged
from trainer.data.relations import Relations, follow_ups
from trainer.models.padded_prior import NOTHING, Partners
from trainer.models.prior import Entries, PriorInput

Ints = NDArray[np.int64]


class PriorCounter:
    """Looks histories up in the relations of the items.

    Args:
        relations: of the items.
        config: which relations, how they fade, and whether users are left out of their own counts.
        train: [users] training part that was counted, to leave them out.
    """

    def __init__(self, relations: Relations, config: PriorConfig, train: Ragged | None = None) -> None:
        self._relations, self._config, self._train = relations, config, train
        self._n_items = relations.n_items
        self._scale = (1 / np.sqrt(relations.frequency + 1)).astype(np.float32)

    def of_histories(self, histories: Ragged) -> PriorInput:
        """A row for each history, by the counts as they are."""
        lengths = histories.lengths
        rows = sparse.csr_matrix(
            (self._fading(lengths), np.arange(len(histories.values)), histories.offsets),
            shape=(len(histories), len(histories.values)),
        )
        return self._input(rows, histories.values.astype(np.int64), None)

    def of_prefixes(self, users: Ints, lengths: Ints, inputs: Ints) -> PriorInput:
        """A row for every beginning of every sequence.

        Args:
            users: [B] user of each sequence.
            lengths: [B] items of each.
            inputs: [R] items, sequence by sequence, oldest first.
        """
        firsts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        counts = np.arange(len(inputs)) - firsts + 1
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(firsts, counts) + np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        rows = sparse.csr_matrix((self._fading(counts), places, offsets), shape=(len(inputs), len(inputs)))
        own = None
        if self._config.leave_one_out:
            if self._train is None:
                raise ValueError("to leave users out of the counts their training part is needed")
            own = _Own(self._train.take(users), np.repeat(np.arange(len(users)), lengths), self._n_items)
        return self._input(rows, inputs, own)

    def partners(self) -> Partners:
        """The relations as tensors of the same form for every item: what `of_histories` looks up, for a graph."""
        ids, values, scales = {}, {}, {}
        for name in RELATIONS:
            matrix = getattr(self._relations, name)
            scale = np.ones_like(self._scale) if name == "text" else self._scale
            found = sparse.csr_matrix(sparse.diags(scale) @ matrix)
            ids[name], values[name] = _padded(found)
            scales[name] = torch.from_numpy(scale)
        return Partners(ids, values, scales, self._config.decay)

    def _fading(self, lengths: Ints) -> NDArray[np.float32]:
        """decay^age of every item of histories of these lengths."""
        ages = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(lengths.sum())
        return np.power(self._config.decay, ages, dtype=np.float32)

    def _input(self, rows: sparse.csr_matrix, items: Ints, own: _Own | None) -> PriorInput:
        """Count.

        Args:
            rows: [R, P] which places each row knows, and how much they weigh; the latest place of a row stands last.
            items: [P] item of each place.
            own: what the users of the places have to do with the counts; None counts them in.
        """
        relations, shape = self._relations, (rows.shape[0], self._n_items)
        # Copies, since entries are merged and sorted in place.
        places = (np.ones(rows.nnz, np.float32), items[rows.indices], rows.indptr)
        known = sparse.csr_matrix(places, shape=shape, copy=True)
        known.sum_duplicates()
        known.data[:] = 1
        together, following = relations.together[items], relations.next[items]
        bought: sparse.csr_matrix = sparse.csr_matrix(shape)
        if own is not None:
            bought = own.bought
            together = together - own.together(together)
            following = following - own.following(following, items, self._config.gap)
        scaled, seen = rows @ sparse.diags(self._scale[items]), _keys(known)
        latest = np.arange(shape[0]) * self._n_items + items[rows.indices[rows.indptr[1:] - 1]]
        return PriorInput(
            together=self._popular_scaled(_without(scaled @ together, seen), bought),
            next=self._popular_scaled(_without(scaled @ following, seen), bought),
            text=_entries(_without(rows @ relations.text[items], seen)),
            popularity=self._less_popular(bought),
            seen=_entries(known),
            latest=Entries(torch.from_numpy(latest), torch.ones(shape[0]), np.arange(shape[0] + 1)),
        )

    def _popular_scaled(self, found: sparse.csr_matrix, bought: sparse.csr_matrix) -> Entries:
        """Times 1/sqrt(n_j + 1), n_j without what the row's user has bought."""
        counts = self._relations.frequency[found.indices] - _at(bought, _keys(found))
        found.data *= (1 / np.sqrt(counts + 1)).astype(np.float32)
        return _entries(found)

    def _less_popular(self, bought: sparse.csr_matrix) -> Entries:
        counts = self._relations.frequency[bought.indices]
        changed = (np.log1p(counts - bought.data) - np.log1p(counts)).astype(np.float32)
        return _entries(sparse.csr_matrix((changed, bought.indices, bought.indptr), bought.shape, copy=True))


class _Own:
    """What users have to do with the counts.

    Args:
        trained: [B] training parts.
        owners: [R] whose each place is.
        n_items: items of the catalogue.
    """

    def __init__(self, trained: Ragged, owners: Ints, n_items: int) -> None:
        self._trained, self._owners, self._n_items = trained, owners, n_items
        ones = np.ones(len(trained.values), np.float32)
        counts = sparse.csr_matrix((ones, trained.values, trained.offsets), (len(trained), n_items), copy=True)
        counts.sum_duplicates()
        self.bought = counts[owners]
        """[R, items] the owner's interactions with each item."""

    def together(self, kept: sparse.csr_matrix) -> sparse.csr_matrix:
        """[R, items] the owner's part of the pairs that a relation keeps, of each place's item."""
        return kept.sign().multiply(self.bought.sign())

    def following(self, kept: sparse.csr_matrix, items: Ints, gap: int) -> sparse.csr_matrix:
        """The same for what follows the item of each place, [R]."""
        pairs = follow_ups(self._trained, gap)
        own, row = np.unique(pairs.rows * self._n_items + pairs.before, return_inverse=True)
        # A last row for items that nothing follows.
        shape = (len(own) + 1, self._n_items)
        weights = sparse.csr_matrix((pairs.weights, (row, pairs.after)), shape=shape)
        asked = self._owners * self._n_items + items
        places = np.searchsorted(own, asked)
        found = np.append(own, -1)[places] == asked
        return kept.sign().multiply(weights[np.where(found, places, len(own))])


def _padded(matrix: sparse.csr_matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows + 1, most] columns and values of the entries of each row, filled with the number of columns and 0."""
    rows, columns = matrix.shape
    lengths = np.diff(matrix.indptr)
    ids = np.full((rows + 1, max(lengths.max(initial=0), 1)), columns, np.int64)
    values = np.zeros(ids.shape, np.float32)
    row = np.repeat(np.arange(rows), lengths)
    within = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], lengths)
    ids[row, within], values[row, within] = matrix.indices, matrix.data
    return torch.from_numpy(ids), torch.from_numpy(values)


def _keys(matrix: sparse.csr_matrix) -> Ints:
    """[n] row × columns + column of the entries, in rising order."""
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    keys: Ints = rows * matrix.shape[1] + matrix.indices
    return keys


def _at(matrix: sparse.csr_matrix, asked: Ints) -> NDArray[np.float32]:
    """[n] the entries at these keys, 0 where there is none."""
    keys = np.append(_keys(matrix), -1)
    places = np.searchsorted(keys[:-1], asked)
    return np.where(keys[places] == asked, np.append(matrix.data, 0)[places], 0)


def _without(found: sparse.csr_matrix, seen: Ints) -> sparse.csr_matrix:
    """Less the entries at these keys, and those that rounding has left of nothing."""
    keys = _keys(found)
    places = np.searchsorted(seen, keys)
    kept = (np.append(seen, -1)[places] != keys) & (found.data > NOTHING)
    starts = np.concatenate([[0], np.cumsum(kept)])[found.indptr]
    return sparse.csr_matrix((found.data[kept], found.indices[kept], starts), shape=found.shape)


def _entries(matrix: sparse.csr_matrix) -> Entries:
    places = _keys(matrix)
    return Entries(torch.from_numpy(places), torch.from_numpy(matrix.data), matrix.indptr.astype(np.int64))
