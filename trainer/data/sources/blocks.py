"""Columns of a table file, many rows at a time: no Python object a cell where the file is plain enough.

Parquet is read by Arrow. So are lines of csv and tsv that need no thought: without quotes, without empty lines, of the
right width. All other lines, and jsonl, go row by row through `TableFile`, which also names what is wrong with them.
"""

from __future__ import annotations

import codecs
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.data.sources.files import Rows, TableFile, plain
from trainer.errors import BadInput

Column: TypeAlias = pa.Array | list[Any]
"""Cells of a column: an Arrow array, or Python values from a file that was read row by row."""

_BYTES_PER_ROW = 32
"""Bytes of a short line, to cut csv and tsv into blocks."""


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring rows of a file.

    Args:
        numbers: [rows] where they stand, for `TableFile.where`.
        columns: the cells, one column each.
    """

    numbers: NDArray[np.int64]
    columns: list[Column]


def read_blocks(file: TableFile, columns: Sequence[str], size: int) -> Iterator[Block]:
    """These columns of a file, about `size` rows at a time.

    Raises:
        BadInput: at a row that is malformed, after the rows before it.
    """
    if file.kind == "parquet":
        yield from _parquet_blocks(file, columns, size)
    elif file.kind == "jsonl":
        yield from _gathered(file.rows(columns), size)
    else:
        yield from _line_blocks(file, columns, size)


def _parquet_blocks(file: TableFile, columns: Sequence[str], size: int) -> Iterator[Block]:
    before = 0
    with file.open() as stream:
        for batch in pq.ParquetFile(stream).iter_batches(size, columns=list(columns)):
            numbers = np.arange(before + 1, before + len(batch) + 1)
            yield Block(numbers, [plain(batch.column(column)) for column in columns])
            before += len(batch)


def _line_blocks(file: TableFile, columns: Sequence[str], size: int) -> Iterator[Block]:
    with file.open() as stream:
        header = stream.readline()
        if not header.strip() or header.count(b'"') % 2:  # the names stand further down, or on several lines
            yield from _gathered(file.rows(columns), size)
            return
        before = 1
        while data := stream.read(size * _BYTES_PER_ROW):
            data += stream.readline()
            table = _parse(file, data)
            if table is not None:
                numbers = np.arange(before + 1, before + len(table) + 1)
                chosen = (table.column(file.columns.index(column)) for column in columns)
                yield Block(numbers, [column.combine_chunks() for column in chosen])
            else:
                # A quoted cell may go on after the block's end, so the rows are read one by one from here on.
                rest = stream if file.kind == "csv" and b'"' in data else ()
                yield from _gathered(file.records(itertools.chain(io.BytesIO(data), rest), columns, before), size)
            before += data.count(b"\n")


def _parse(file: TableFile, data: bytes) -> pa.Table | None:
    """Whole lines as columns of text; None for lines that Arrow would read in another way than `TableFile`."""
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    empty = data.startswith((b"\n", b"\r\n")) or b"\n\n" in data or b"\n\r\n" in data
    unusual = data.startswith(codecs.BOM_UTF8) or b"\0" in data or data.count(b"\r") != data.count(b"\r\n")
    if empty or unusual or (file.kind == "csv" and b'"' in data):
        return None
    names = [str(place) for place in range(len(file.columns))]
    try:
        data.decode()
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            pa_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            pa_csv.ParseOptions(
                delimiter="," if file.kind == "csv" else "\t", quote_char=False, ignore_empty_lines=False
            ),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    return table if len(table) == lines else None


def _gathered(rows: Rows, size: int) -> Iterator[Block]:
    """Rows put together; those before a malformed one come before its error."""
    problem: BadInput | None = None
    while problem is None:
        numbers: list[int] = []
        cells: list[Sequence[Any]] = []
        try:
            for number, row in itertools.islice(rows, size):
                numbers.append(number)
                cells.append(row)
        except BadInput as error:
            problem = error
        if numbers:
            yield Block(np.array(numbers), [list(column) for column in zip(*cells, strict=True)])
        elif problem is None:
            return
    raise problem
