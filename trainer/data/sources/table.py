"""Items and interactions in two files of rows: csv, tsv, jsonl or parquet, each also .gz."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from trainer.config import Section
from trainer.data.sources.base import RawData, Source
from trainer.data.sources.columns import Names, attribute_columns, find_column, guess_column
from trainer.data.sources.files import KINDS, TableFile, as_text, as_time, kind_of
from trainer.data.sources.locate import locate
from trainer.data.sources.log import Log
from trainer.errors import BadInput


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
    log = _read_interactions(interactions_file, item_ids, options)
    rules = [rule]
    if options.file_order:
        rules.append("The rows of the source were taken as oldest first.")
    warnings = []
    if log.dropped:
        warnings.append(f"{log.dropped} interactions went because their item is not in the items file.")
    return RawData(
        item_ids=item_ids,
        attributes=attributes,
        user_ids=list(log.user_index),
        users=np.frombuffer(log.users, np.int32),
        items=np.frombuffer(log.items, np.int32),
        times=log.times.numpy(),
        dated=not options.file_order,
        ratings=log.rating_array(),
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


def _read_items(file: TableFile, options: TableOptions) -> tuple[list[str], dict[str, list[str]], str]:
    """Item ids, attributes by name, and a sentence that says which columns were used."""
    item_id = find_column("item_id", options.item_id, file.columns, file.path)
    others = [column for column in file.columns if column != item_id]
    title = find_column("title", options.title, others, file.path)
    columns = attribute_columns(others, title, options.attributes, file.path)
    seen: dict[str, int] = {}
    attributes: dict[str, list[str]] = {name: [] for name in columns}
    for number, (cell, *cells) in file.rows([item_id, *columns.values()]):
        name = as_text(cell)
        if not name:
            raise BadInput(f"{file.where(number)}: has no item id in column {item_id!r}")
        if name in seen:
            raise BadInput(f"{file.where(number)}: item id {name!r} stands already at {seen[name]}; keep one of them")
        seen[name] = number
        for values, value in zip(attributes.values(), cells, strict=True):
            values.append(as_text(value))
    left = [column for column in others if column not in columns.values()]
    rule = f"Item sentences are made of {', '.join(columns)}" + (f"; {', '.join(left)} stayed out." if left else ".")
    return list(seen), attributes, rule


def _read_interactions(file: TableFile, item_ids: list[str], options: TableOptions) -> Log:
    columns, rated = _interaction_columns(file, options)
    item_index = {name: index for index, name in enumerate(item_ids)}
    log = Log()
    for number, cells in file.rows(columns):
        user, item = as_text(cells[0]), as_text(cells[1])
        index = item_index.get(item)
        if not user or not item:
            missing = columns[0 if not user else 1]
            raise BadInput(f"{file.where(number)}: is empty in column {missing!r}; fill it or remove the row")
        if index is None:
            if options.unknown_items == "refuse":
                raise BadInput(
                    f"{file.where(number)}: item {item!r} is not in the items file; add it there, remove the row, or "
                    "set unknown_items=drop"
                )
            log.dropped += 1
            continue
        time = number if options.file_order else as_time(cells[2])
        if time is None:
            raise BadInput(
                f"{file.where(number)}: {cells[2]!r} in column {columns[2]!r} is no number; times are numbers that "
                "rise, such as Unix seconds"
            )
        log.append(user, index, time)
        if rated:
            log.append_rating(cells[-1])
    return log


def _interaction_columns(file: TableFile, options: TableOptions) -> tuple[list[str], bool]:
    """User, item, time unless the file's order tells it, rating if there is one; and whether there is one."""
    columns = [
        find_column("user_id", options.user_id, file.columns, file.path),
        find_column("interaction_item_id", _item_column(file, options), file.columns, file.path),
    ]
    if not options.file_order:
        columns.append(find_column("timestamp", options.timestamp, file.columns, file.path))
    rated = options.rating is not None or guess_column("rating", file.columns) is not None
    if rated:
        columns.append(find_column("rating", options.rating, file.columns, file.path))
    return columns, rated


def _item_column(file: TableFile, options: TableOptions) -> str | None:
    """The chosen column of the item id, or the items file's chosen one where no other name is known."""
    if options.interaction_item_id is not None or guess_column("interaction_item_id", file.columns) is not None:
        return options.interaction_item_id
    return options.item_id


TABLE = Source(TableOptions, _read)
