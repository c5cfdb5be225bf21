"""Rows of csv, tsv, jsonl and parquet files, each also .gz, with the place where each row stands."""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import BadInput

KINDS = {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}
Rows = Iterator[tuple[int, Sequence[Any]]]
_Binary = IO[bytes] | gzip.GzipFile


def kind_of(path: Path) -> str | None:
    """The kind that a file's name tells (`items.csv.gz` is csv), None for any other name."""
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


class TableFile:
    """One file of rows. Numbers are lines of the file (rows for parquet), counted from 1.

    csv is quoted as in RFC 4180; tsv has no quotes, one line is one row. Both begin with a line of column names.

    Args:
        path: a file whose name ends in a known kind.
        scan: how many rows to look at for the columns of a jsonl file; None for all.
        kind: one of `KINDS`, for a file whose name does not tell.

    Raises:
        BadInput: if the file cannot be read, has no rows' names, or a name twice.
    """

    def __init__(self, path: Path, scan: int | None = None, kind: str | None = None) -> None:
        kind = kind or kind_of(path)
        if kind is None:
            raise BadInput(f"{path}: the name must end in {', '.join('.' + kind for kind in KINDS)}, or that and .gz")
        self.path, self.kind = path, kind
        self.columns = self._columns(scan)
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise BadInput(f"{path}: column {', '.join(map(repr, twice))} stands there twice; rename one")

    def where(self, number: int) -> str:
        """The place of a row, for a message."""
        return f"{self.path}, {'row' if self.kind == 'parquet' else 'line'} {number}"

    def rows(self, columns: Sequence[str]) -> Rows:
        """The number and the cells of these columns, row by row.

        Raises:
            BadInput: at a row that is malformed.
        """
        with self.open() as file:
            if self.kind == "parquet":
                yield from self._parquet_rows(file, columns)
            elif self.kind == "jsonl":
                for number, row in self._objects(file):
                    yield number, [row.get(column) for column in columns]
            else:
                yield from itertools.islice(self.records(file, columns), 1, None)

    def records(self, lines: Iterable[bytes], columns: Sequence[str], before: int = 0) -> Rows:
        """The rows of some lines of a csv or tsv file, its first line of names included.

        Args:
            lines: lines of the file, with their ends.
            columns: whose cells are wanted.
            before: number of lines before these.

        Raises:
            BadInput: at a row that is malformed.
        """
        places = [self.columns.index(column) for column in columns]
        for number, cells in self._records(lines, before, len(self.columns)):
            yield number, [cells[place] for place in places]

    def sha256(self) -> str:
        """Hash of the file's bytes."""
        return sha256_of(self.path)

    @contextmanager
    def open(self) -> Iterator[_Binary]:
        """The file's bytes, unpacked; while it is open, what cannot be read raises BadInput."""
        packed = self.path.suffix.lower() == ".gz"
        with readable(self.path), gzip.open(self.path, "rb") if packed else self.path.open("rb") as file:
            yield file

    def _columns(self, scan: int | None) -> list[str]:
        with self.open() as file:
            if self.kind == "parquet":
                return list(pq.ParquetFile(file).schema_arrow.names)
            if self.kind == "jsonl":
                names: dict[str, None] = {}
                for seen, (_, row) in enumerate(self._objects(file), 1):
                    names.update(dict.fromkeys(row))
                    if seen == scan:
                        break
                header = list(names)
            else:
                header = next((cells for _, cells in self._records(file)), [])
        if not header:
            raise BadInput(f"{self.path}: is empty; it must hold rows with named columns")
        return [name.strip() for name in header]

    def _lines(self, lines: Iterable[bytes], before: int = 0) -> Iterator[str]:
        for number, line in enumerate(lines, before + 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(f"{self.where(number)}: is not UTF-8 text; save the file as UTF-8") from error

    def _objects(self, file: _Binary) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(self._lines(file), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{self.where(number)}: is not JSON ({error}); each line holds one object") from error
            if not isinstance(row, dict):
                raise BadInput(f"{self.where(number)}: is no JSON object; each line holds one, such as {{…}}")
            yield number, row

    def _records(
        self, lines: Iterable[bytes], before: int = 0, width: int | None = None
    ) -> Iterator[tuple[int, list[str]]]:
        """Rows of `width` cells, or as many as the first has."""
        text = self._lines(lines, before)
        reader = (
            csv.reader(text, strict=True)
            if self.kind == "csv"
            else csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        )
        while True:
            number = before + reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise BadInput(f"{self.where(number)}: is no {self.kind} row ({error}); mend its quotes") from error
            if cells is None:
                return
            if not cells:
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise BadInput(
                    f"{self.where(number)}: has {len(cells)} fields, the first line has {width}; mend or remove it"
                )
            yield number, cells

    def _parquet_rows(self, file: _Binary, columns: Sequence[str]) -> Rows:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(columns=list(columns)):
            cells = [plain(batch.column(column)).to_pylist() for column in columns]
            for row in zip(*cells, strict=True):
                number += 1
                yield number, row


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file, also .gz, without their ends, counted from 1.

    Raises:
        BadInput: if it cannot be read or is not UTF-8.
    """
    with readable(path), gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise BadInput(f"{path}, line {number}: is not UTF-8 text; save the file as UTF-8") from error


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    with readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_text(value: Any) -> str:
    """A cell as text: "" for what is missing, lists joined by spaces, whole floats without their point."""
    if isinstance(value, str):
        text = value.strip()
        return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list):
        return " ".join(filter(None, map(as_text, value)))
    if isinstance(value, dict):
        return " ".join(f"{key} {as_text(item)}" for key, item in value.items() if as_text(item))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def as_time(value: Any) -> int | float | None:
    """A cell as a number that orders, None when it is none. Whole numbers stay exact."""
    try:
        return int(value) if not isinstance(value, float) else _finite(value)
    except (TypeError, ValueError):
        try:
            return _finite(float(value))
        except (TypeError, ValueError):
            return None


def as_rating(value: Any) -> float:
    """A cell as a number, NaN when it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plain(column: pa.Array) -> pa.Array:
    """Dates and times as integers, dictionaries unpacked."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_temporal(column.type):
        return column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64())
    return column


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong in reading raises BadInput."""
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BadInput(f"{path}: cannot be read ({reason})") from error
