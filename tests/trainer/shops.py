"""Small raw data for the tests of trainer.data."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare

ITEMS = [
    {"id": "a", "title": 'Saw, "fine"', "brand": "Acme", "categories": "Tools Saws"},
    {"id": "b", "title": "Büro lamp", "brand": "", "categories": "Light"},
    {"id": "c", "title": "Blue mug", "brand": "Cupco", "categories": "Kitchen"},
    {"id": "d", "title": "Red mug", "brand": "Cupco", "categories": "Kitchen"},
]
HISTORIES = {"u1": "abcd", "u2": "bcda", "u3": "cdab", "u4": "dabcc"}
INTERACTIONS = [
    {"user": user, "item": item, "timestamp": 10 * time}
    for user, items in HISTORIES.items()
    for time, item in enumerate(items)
]


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows in the format that the name tells."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        content = buffer.getvalue()
    elif name.endswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif name.endswith(".tsv"):
        lines = [list(rows[0])] + [list(row.values()) for row in rows]
        content = "".join("\t".join(map(str, line)) + "\n" for line in lines).encode()
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def write_shop(folder: Path, items=ITEMS, interactions=INTERACTIONS, kind: str = "csv") -> Path:
    """A source folder for format `table`."""
    write_rows(folder / f"items.{kind}", items)
    write_rows(folder / f"interactions.{kind}", interactions)
    return folder


def shop_of(folder: Path, histories: dict[str, str], titles: dict[str, str] | None = None, **options) -> Dataset:
    """Prepare and open histories such as {"u1": "abcd"}, oldest first, one letter an item."""
    letters = sorted(set("".join(histories.values())))
    items = [{"id": letter, "title": (titles or {}).get(letter, f"thing {letter}")} for letter in letters]
    interactions = [
        {"user": user, "item": item, "timestamp": time}
        for user, history in histories.items()
        for time, item in enumerate(history)
    ]
    write_shop(folder / "raw", items, interactions)
    prepare("table", folder / "raw", folder / "data", **options)
    return Dataset.open(folder / "data")
