"""A shop of any size in Parquet or tsv, drawn and written chunk by chunk.

Items have a theme, which their titles tell; users have one too, and choose seven of ten items by it. One round after
the other every user takes one item, so that a user's rows lie as far apart in the file as they can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

ITEMS_PER_THEME = 200
_OWN_THEME = 0.7
_ROW_GROUP = 250_000
_FIRST = ("ka", "lo", "mi", "ru", "te", "so", "pa", "ne", "di", "fu")
_SECOND = ("ran", "tor", "lis", "men", "dar", "vex", "bol", "gin", "sut", "wap")
_WORDS = np.array([first + second for first in _FIRST for second in _SECOND])


def write_shop(folder: Path, users: int, items: int, rounds: int, seed: int = 0) -> None:
    """Write items.parquet, and users × rounds interactions as interactions.parquet and interactions.tsv."""
    rng = np.random.default_rng(seed)
    pq.write_table(_items(items, rng), folder / "items.parquet")
    parquet, tsv = folder / "interactions.parquet", folder / "interactions.tsv"
    tabs = pa_csv.WriteOptions(delimiter="\t", quoting_style="none")
    schema = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()})
    with pq.ParquetWriter(parquet, schema) as rows, pa_csv.CSVWriter(tsv, schema, write_options=tabs) as lines:
        for chunk in _rounds(users, items, rounds, rng):
            rows.write_table(chunk, row_group_size=_ROW_GROUP)
            lines.write_table(chunk)


def _items(items: int, rng: np.random.Generator) -> pa.Table:
    themes = np.arange(items) % _themes(items)
    words = [_WORDS[(themes // 10**place * 7 + place) % len(_WORDS)] for place in range(3)]
    words += [_WORDS[rng.integers(len(_WORDS), size=items)] for _ in range(2)]
    return pa.table(
        {
            "item_id": _names("B", np.arange(items)),
            "title": pc.binary_join_element_wise(*map(pa.array, words), " "),
            "brand": _WORDS[rng.integers(len(_WORDS), size=items)],
            "categories": _WORDS[themes % len(_WORDS)],
        }
    )


def _rounds(users: int, items: int, rounds: int, rng: np.random.Generator) -> Iterator[pa.Table]:
    themes = _themes(items)
    for number in range(rounds):
        who = rng.permutation(users)
        own = who % themes + themes * rng.integers(items // themes, size=users)
        popular = (items * rng.random(users) ** 1.5).astype(np.int64)
        what = np.where(rng.random(users) < _OWN_THEME, own, popular)
        when = 1_600_000_000 + 100_000 * number + rng.integers(200_000, size=users)
        yield pa.table({"user_id": _names("A", who), "item_id": _names("B", what), "timestamp": when})


def _themes(items: int) -> int:
    return max(1, items // ITEMS_PER_THEME)


def _names(prefix: str, numbers: NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 10, "0"), "")
