"""Many texts in one buffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_CHUNK = 2**16


class Strings(Sequence[str]):
    """An immutable sequence of texts, a quarter of the memory of a list of short ones.

    Reading one makes a new Python string, so loops over many should iterate, which converts by chunks.

    Args:
        texts: an Arrow array of texts without nulls, or any texts.
    """

    def __init__(self, texts: pa.Array | pa.ChunkedArray | Iterable[str]) -> None:
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        # Offsets of 64 bits: a catalogue's sentences may be longer than 2 GiB together.
        self._array: pa.Array = pa.array(texts, pa.large_string())

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Strings: ...
    def __getitem__(self, index: int | slice) -> str | Strings:
        return Strings(self._array[index]) if isinstance(index, slice) else self._array[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from self._array[start : start + _CHUNK].to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return self._array.equals(other._array)
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self._array if type is None else self._array.cast(type)

    def take(self, rows: NDArray[np.integer]) -> Strings:
        """The texts of these indices, in their order."""
        return Strings(self._array.take(pa.array(rows)))
