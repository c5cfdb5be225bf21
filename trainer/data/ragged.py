"""Rows of different length in two flat arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_ROW_GROUP = 2**17


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row i is `values[offsets[i] : offsets[i + 1]]`.

    Args:
        values: [total] int32, all rows one after the other.
        offsets: [rows + 1] int64, rising, from 0 to total.
    """

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int] | NDArray[np.integer]]) -> Ragged:
        """Copy rows of integers."""
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        return cls.from_lengths(
            np.concatenate(arrays) if arrays else np.empty(0, np.int32), [len(array) for array in arrays]
        )

    @classmethod
    def from_lengths(cls, values: NDArray[np.integer], lengths: Sequence[int] | NDArray[np.integer]) -> Ragged:
        """Cut flat values, [total], into rows of the given lengths, [rows]."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(np.ascontiguousarray(values, np.int32), offsets)

    @classmethod
    def join(cls, parts: Iterable[Ragged]) -> Ragged:
        """The rows of all parts, one part after the other."""
        parts = [cls.from_rows([]), *parts]
        return cls.from_lengths(
            np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts])
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of every row, [rows]."""
        return np.diff(self.offsets)

    @property
    def row_of_value(self) -> NDArray[np.int64]:
        """The row that each value stands in, [total]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        """The rows of these indices, in their order."""
        lengths = self.lengths[rows]
        starts = np.repeat(self.offsets[:-1][rows], lengths)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Ragged.from_lengths(self.values[starts + within], lengths)

    def newest(self, count: int) -> Ragged:
        """The last `count` values of every row, or all of a shorter one."""
        lengths = np.minimum(self.lengths, count)
        before_end = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths), lengths)
        return Ragged.from_lengths(self.values[np.repeat(self.offsets[1:], lengths) + before_end], lengths)

    def shifted(self) -> tuple[Ragged, NDArray[np.int32]]:
        """Every row without its last value, and what follows each of these values; no row may be empty."""
        inputs = Ragged.from_lengths(np.delete(self.values, self.offsets[1:] - 1), self.lengths - 1)
        return inputs, np.delete(self.values, self.offsets[:-1])

    def append(self, column: NDArray[np.integer]) -> Ragged:
        """Every row with one more value at its end; column is [rows]."""
        return Ragged(
            np.insert(self.values, self.offsets[1:], column).astype(np.int32, copy=False),
            self.offsets + np.arange(len(self.offsets)),
        )

    def save(self, path: Path, column: str = "values") -> None:
        """Write a Parquet file with one list column."""
        save_parts(path, [self], column)

    @classmethod
    def load(cls, path: Path) -> Ragged:
        """Read what `save` or `save_parts` wrote, with little more memory than the result's own."""
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number).column(0) for number in range(file.metadata.num_row_groups)]
            # Parquet counts an empty row as one value, so this may be too many.
            values = np.empty(sum(group.num_values for group in groups), np.int32)
            lengths = np.empty(file.metadata.num_rows, np.int64)
            row = place = 0
            for batch in file.iter_batches():
                rows, part = batch.column(0), integers(batch.column(0).flatten())
                lengths[row : row + len(rows)] = np.diff(integers(rows.offsets))
                values[place : place + len(part)] = part
                row, place = row + len(rows), place + len(part)
        return cls.from_lengths(values[:place], lengths)


def save_parts(path: Path, parts: Iterable[Ragged], column: str = "values") -> None:
    """Write the rows of all parts, one part after the other, as `Ragged.save` does; one part at a time is held."""
    schema = pa.schema({column: pa.large_list(pa.int32())})
    with pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            rows = pa.LargeListArray.from_arrays(pa.array(part.offsets), pa.array(part.values))
            writer.write_table(pa.table([rows], schema), row_group_size=_ROW_GROUP)


def read_table(path: Path | pa.BufferReader) -> pa.Table:
    """A Parquet file whole. `pyarrow.parquet.read_table` does the same, but imports pandas."""
    with pq.ParquetFile(path) as file:
        return file.read()


def integers(array: pa.Array) -> NDArray[np.integer]:
    """A view of integers without nulls. `Array.to_numpy` does the same, but imports pandas."""
    view: NDArray[Any] = np.from_dlpack(array)
    return view
