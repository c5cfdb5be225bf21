"""Interactions of a table file as arrays, in bounded memory: block by block, ids turned into numbers by Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.ragged import integers
from trainer.data.sources.blocks import Block, Column, read_blocks
from trainer.data.sources.cells import flags, ratings, take, texts, times
from trainer.data.sources.files import TableFile
from trainer.data.strings import Strings
from trainer.errors import BadInput

_ROWS_PER_BLOCK = 2**20
"""Enough that hashing all items and all users once a block costs little beside the rows."""


class Vocabulary:
    """Texts numbered in the order in which they came.

    Args:
        texts: distinct ones to begin with.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._texts = pa.array(Strings(texts))

    def find(self, texts: pa.Array) -> NDArray[np.int32]:
        """Number of each text, -1 for one that is not there."""
        return integers(pc.index_in(texts, value_set=self._texts).fill_null(-1)).astype(np.int32)

    def add(self, texts: pa.Array) -> NDArray[np.int32]:
        """Number of each text; those that are not there get the next ones."""
        encoded = texts.dictionary_encode()
        numbers = self.find(encoded.dictionary)
        new = np.flatnonzero(numbers < 0)
        numbers[new] = len(self._texts) + np.arange(len(new))
        self._texts = pa.concat_arrays([self._texts, encoded.dictionary.take(pa.array(new))])
        return numbers[integers(encoded.indices)]

    @property
    def texts(self) -> Strings:
        """All of them, by number."""
        return Strings(self._texts)


@dataclass(frozen=True, eq=False)
class Interactions:
    """What a file holds, in its order.

    Args:
        user_ids: in the order of the first interaction.
        users, items: [interactions] indices.
        times: [interactions] exact integers, or doubles if any is a fraction.
        ratings: [interactions], NaN where there is none.
        dropped: interactions that were left out because their item is unknown.
    """

    user_ids: Strings
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[Any]
    ratings: NDArray[np.float32]
    dropped: int


@dataclass(frozen=True)
class InteractionColumns:
    """Where the cells are; without a column of times the place of a row is its time."""

    user: str
    item: str
    time: str | None
    rating: str | None = None

    @property
    def names(self) -> list[str]:
        """Those that are there, in this order."""
        return [name for name in (self.user, self.item, self.time, self.rating) if name is not None]


def read_interactions(
    file: TableFile, columns: InteractionColumns, item_ids: Sequence[str], *, refuse_unknown: bool
) -> Interactions:
    """Read all interactions with known items.

    Raises:
        BadInput: at the first row that is malformed or lacks user or item, whose item is unknown, if those are
            refused, or whose time is no number.
    """
    user_ids, items = Vocabulary(), Vocabulary(item_ids)
    parts = [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32))]
    dropped = 0
    for block in read_blocks(file, columns.names, _ROWS_PER_BLOCK):
        users, indices, moments, rated = _known(file, columns, block, items, refuse_unknown)
        parts.append((user_ids.add(users), indices, moments, rated))
        dropped += len(block.numbers) - len(indices)
    users, indices, moments, rated = map(np.concatenate, zip(*parts, strict=True))
    return Interactions(user_ids.texts, users, indices, moments, rated, dropped)


def _known(
    file: TableFile, columns: InteractionColumns, block: Block, items: Vocabulary, refuse_unknown: bool
) -> tuple[pa.Array, NDArray[np.int32], NDArray[Any], NDArray[np.float32]]:
    """User ids, item indices, times and ratings of a block's rows with known items, once no row is wrong."""
    users, names = texts(block.columns[0]), texts(block.columns[1])
    indices = items.find(names)
    known = np.flatnonzero(indices >= 0)
    moments = block.numbers[known]
    wrong = [np.flatnonzero(flags(pc.or_(pc.equal(users, ""), pc.equal(names, ""))))]
    if columns.time:
        moments, untimed = times(take(block.columns[2], known))
        wrong.append(known[untimed])
    if refuse_unknown:
        wrong.append(np.flatnonzero(indices < 0))
    row = int(np.concatenate(wrong).min(initial=len(indices)))
    if row < len(indices):
        complaint = _complaint(columns, users[row].as_py(), names[row].as_py(), indices[row] < 0, block.columns, row)
        raise BadInput(f"{file.where(int(block.numbers[row]))}: {complaint}")
    rated = ratings(take(block.columns[-1], known)) if columns.rating else np.full(len(known), np.nan, np.float32)
    return take(users, known), indices[known], moments, rated


def _complaint(
    columns: InteractionColumns, user: str, item: str, unknown: bool, cells: Sequence[Column], row: int
) -> str:
    if not user or not item:
        return f"is empty in column {(columns.item if user else columns.user)!r}; fill it or remove the row"
    if unknown:
        return f"item {item!r} is not in the items file; add it there, remove the row, or set unknown_items=drop"
    cell = cells[2][row]
    value = cell.as_py() if isinstance(cell, pa.Scalar) else cell
    return f"{value!r} in column {columns.time!r} is no number; times are numbers that rise, such as Unix seconds"
