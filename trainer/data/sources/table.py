"""Items and interactions in two files of rows: csv, tsv, jsonl or parquet, each also .gz."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from trainer.config import Section
from trainer.data.sources.base import RawData, Source
from trainer.data.sources.blocks import read_blocks
from trainer.data.sources.cells import texts
from trainer.data.sources.columns import Names, attribute_columns, find_column, guess_column
from trainer.data.sources.files import KINDS, TableFile, kind_of
from trainer.data.sources.interactions import InteractionColumns, read_interactions
from trainer.data.sources.locate import locate
from trainer.data.sources.log import known_ratings
from trainer.data.strings import Strings
from trainer.errors import BadInput

_ITEMS_PER_BLOCK = 2**16


class TableOptions(Section):
    """Two files of rows, and the names of their columns where they are unusual (`columns.SYNONYMS` are found)."""

    items: str | None = Field(None, description="Items file; `items.*` in the source folder when absent.")
    interactions: str | None = Field(
        None, description="Interactions file; `interactions.*` in the source folder when absent."
    )
    item_id: str | None = Field(None, description="Column of the item's id in the items file.")
    title: str | None = Field(None, description="Column of the item's title.")
    attributes: Names | None = Field(
        None,
        description="Item columns that enter the sentence beside the title, also as `a,b`; when absent all but copies "
        "of the text, links and lists of other items (`columns.LEFT_OUT`).",
    )
    user_id: str | None = Field(None, description="Column of the user's id in the interactions file.")
    interaction_item_id: str | None = Field(None, description="Column of the item's id in the interactions file.")
    timestamp: str | None = Field(None, description="Column of a number that rises with time.")
    rating: str | None = Field(None, description="Column of the rating, for `min_rating`.")
    file_order: bool = Field(False, description="Rows are oldest first for every user; no timestamp is read.")
    unknown_items: Literal["refuse", "drop"] = Field(
        "refuse", description="What to do with an interaction whose item the items file lacks."
    )


def _read(path: Path | None, options: TableOptions) -> RawData:
    items_file = TableFile(_locate(path, options.items, "items"))
    return read_tables(items_file, TableFile(_locate(path, options.interactions, "interactions"), scan=1), options)


def read_tables(items_file: TableFile, interactions_file: TableFile, options: TableOptions) -> RawData:
    """Items and interactions of two files of rows, whatever their kind.

    Raises:
        BadInput: if a column is missing, or at a row that is malformed.
    """
    item_ids, attributes, rule = _read_items(items_file, options)
    columns = _interaction_columns(interactions_file, options)
    refuse = options.unknown_items == "refuse"
    log = read_interactions(interactions_file, columns, item_ids, refuse_unknown=refuse)
    rules = [rule]
    if options.file_order:
        rules.append("The rows of the source were taken as oldest first.")
    warnings = []
    if log.dropped:
        warnings.append(f"{log.dropped} interactions went because their item is not in the items file.")
    return RawData(
        item_ids=item_ids,
        attributes=attributes,
        user_ids=log.user_ids,
        users=log.users,
        items=log.items,
        times=log.times,
        dated=not options.file_order,
        ratings=known_ratings(log.ratings),
        source_files={file.path.name: file.sha256() for file in (items_file, interactions_file)},
        rules=rules,
        warnings=warnings,
    )


def _locate(folder: Path | None, named: str | None, stem: str) -> Path:
    """The file named by an option, or the only one of that stem in the source folder."""
    expected = f"{stem}.* ({', '.join(KINDS)}, each also .gz)"
    return locate(
        folder, named, stem, expected, lambda name: name.startswith(f"{stem}.") and kind_of(Path(name)) is not None
    )


def _read_items(file: TableFile, options: TableOptions) -> tuple[Strings, dict[str, Strings], str]:
    """Item ids, attributes by name, and a sentence that says which columns were used."""
    item_id = find_column("item_id", options.item_id, file.columns, file.path)
    others = [column for column in file.columns if column != item_id]
    title = find_column("title", options.title, others, file.path)
    columns = attribute_columns(others, title, options.attributes, file.path)
    seen: dict[str, int] = {}
    parts: list[list[pa.Array]] = [[] for _ in columns]
    for block in read_blocks(file, [item_id, *columns.values()], _ITEMS_PER_BLOCK):
        for number, name in zip(block.numbers.tolist(), texts(block.columns[0]).to_pylist(), strict=True):
            if not name:
                raise BadInput(f"{file.where(number)}: has no item id in column {item_id!r}")
            if name in seen:
                raise BadInput(
                    f"{file.where(number)}: item id {name!r} stands already at {seen[name]}; keep one of them"
                )
            seen[name] = number
        for part, cells in zip(parts, block.columns[1:], strict=True):
            part.append(texts(cells))
    left = [column for column in others if column not in columns.values()]
    rule = f"Item sentences are made of {', '.join(columns)}" + (f"; {', '.join(left)} stayed out." if left else ".")
    attributes = {
        name: Strings(pa.chunked_array(part, pa.large_string())) for name, part in zip(columns, parts, strict=True)
    }
    return Strings(seen), attributes, rule


def _interaction_columns(file: TableFile, options: TableOptions) -> InteractionColumns:
    rated = options.rating is not None or guess_column("rating", file.columns) is not None
    return InteractionColumns(
        user=find_column("user_id", options.user_id, file.columns, file.path),
        item=find_column("interaction_item_id", _item_column(file, options), file.columns, file.path),
        time=None if options.file_order else find_column("timestamp", options.timestamp, file.columns, file.path),
        rating=find_column("rating", options.rating, file.columns, file.path) if rated else None,
    )


def _item_column(file: TableFile, options: TableOptions) -> str | None:
    """The chosen column of the item id, or the items file's chosen one where no other name is known."""
    if options.interaction_item_id is not None or guess_column("interaction_item_id", file.columns) is not None:
        return options.interaction_item_id
    return options.item_id


TABLE = Source(TableOptions, _read)
