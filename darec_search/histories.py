"""Histories from a file, and recommendations to one; the suffix says how.

suffix          history                                           recommendations
.csv, .tsv      columns `history` (items joined by commas, or     a row an item: history (from 1), user, rank, id,
                by `|` where one occurs) and perhaps `user`       title, score
.parquet        the same columns; `history` may be a list         the same
.jsonl          {"history": [...], "user": ...} or a list a line  {"user", "history", "items": [{id, title, score}]}
anything else   a history a line, items joined by commas          (none)
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from darec_search.recommender import Recommendation, Recommender
from trainer.data.ragged import read_table
from trainer.errors import BadInput

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class History:
    """What a user has had, oldest first, and who that is, where known."""

    items: tuple[str, ...]
    """Ids or titles as they were written."""
    user: str | None = None

    def document(self, found: Sequence[Recommendation]) -> dict[str, Any]:
        """With its recommendations, for machines."""
        user = {} if self.user is None else {"user": self.user}
        return {**user, "history": list(self.items), "items": [asdict(item) for item in found]}


def split_items(text: str) -> tuple[str, ...]:
    """Items in one text, joined by `|` where one occurs, else by commas."""
    return tuple(item.strip() for item in text.split("|" if "|" in text else ",") if item.strip())


def resolved(recommender: Recommender, histories: Sequence[History]) -> list[History]:
    """The same histories with every item by its id.

    Raises:
        BadInput: if one is empty, or an item is unknown or ambiguous; names the history, from 1.
    """
    found = []
    for place, history in enumerate(histories, 1):
        if not history.items:
            raise BadInput(f"history {place}: is empty; name at least one item")
        try:
            found.append(History(tuple(recommender.items.id_of(item) for item in history.items), history.user))
        except BadInput as error:
            raise BadInput(f"history {place}: {error}") from None
    return found


def read(path: Path) -> list[History]:
    """The histories of a file.

    Raises:
        BadInput: if it cannot be read, holds none, or a row is no history.
    """
    try:
        found = list(_READERS.get(path.suffix, _lines)(path))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    if not found:
        raise BadInput(f"{path}: holds no history; write one a line, item ids separated by commas")
    return found


def check_output(path: Path) -> None:
    """Check that recommendations can be written to a file, before they are made.

    Raises:
        BadInput: if its suffix is unknown or its folder does not exist.
    """
    if path.suffix not in SUFFIXES:
        raise BadInput(f"--out {path}: must end in {', '.join(SUFFIXES)}")
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"--out {path}: must be a file in a folder that exists")


def write(path: Path, histories: Sequence[History], found: Sequence[Sequence[Recommendation]]) -> None:
    """Write recommendations in the format of the file's suffix.

    Raises:
        BadInput: if it cannot be written.
    """
    try:
        if path.suffix == ".jsonl":
            with path.open("w", encoding="utf-8") as file:
                for history, items in zip(histories, found, strict=True):
                    file.write(json.dumps(history.document(items), ensure_ascii=False) + "\n")
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(_rows(histories, found)), _SCHEMA), path)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, _SCHEMA.names, delimiter=_delimiter(path))
                writer.writeheader()
                writer.writerows(_rows(histories, found))
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror or error}); choose another file") from error


_SCHEMA = pa.schema(
    {
        "history": pa.int64(),
        "user": pa.string(),
        "rank": pa.int64(),
        "id": pa.string(),
        "title": pa.string(),
        "score": pa.float64(),
    }
)


def _rows(histories: Sequence[History], found: Sequence[Sequence[Recommendation]]) -> Iterator[dict[str, Any]]:
    for place, (history, items) in enumerate(zip(histories, found, strict=True), 1):
        for rank, item in enumerate(items, 1):
            yield {"history": place, "user": history.user, "rank": rank, **asdict(item)}


def _lines(path: Path) -> Iterator[History]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield History(split_items(line))


def _table(path: Path) -> Iterator[History]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter=_delimiter(path))
        if "history" not in (rows.fieldnames or ()):
            raise BadInput(f"{path}: has no column `history`; name the column of the items so")
        for number, row in enumerate(rows, 2):
            yield _history(row.get("history"), row.get("user") or None, f"{path}, row {number}")


def _json_lines(path: Path) -> Iterator[History]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            found = json.loads(line)
        except ValueError:
            raise BadInput(f"{where}: is no JSON; write an object with `history`, or a list, a line") from None
        row = found if isinstance(found, dict) else {"history": found}
        yield _history(row.get("history"), row.get("user"), where)


def _parquet(path: Path) -> Iterator[History]:
    table = read_table(path)
    if "history" not in table.column_names:
        raise BadInput(f"{path}: has no column `history`; name the column of the items so")
    users = table.column("user").to_pylist() if "user" in table.column_names else [None] * table.num_rows
    for number, (items, user) in enumerate(zip(table.column("history").to_pylist(), users, strict=True), 1):
        yield _history(items, user, f"{path}, row {number}")


def _history(items: Any, user: Any, where: str) -> History:
    if isinstance(items, str):
        return History(split_items(items), None if user is None else str(user))
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise BadInput(f"{where}: `history` must be item ids or titles as text, or a list of them")
    return History(tuple(items), None if user is None else str(user))


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


_READERS = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".parquet": _parquet}
