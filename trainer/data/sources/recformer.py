"""The layout of RecFormer's datasets (Li et al., KDD 2023; repository AaronHeee/RecFormer).

- umap.json, smap.json: id → number, of users and items;
- train.json, val.json, test.json: number of a user → numbers of items, oldest first; val and test hold one;
- meta_data.json: item id → its attributes, such as title, brand, category.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from trainer.config import Section
from trainer.data.sources.base import OWN_SPLIT, RawData, Source
from trainer.data.sources.clean import clean_brand, clean_list, clean_title
from trainer.data.sources.columns import Names, attribute_columns, find_column
from trainer.data.sources.files import numbered_lines, sha256_of
from trainer.errors import BadInput

_CLEAN = {"title": clean_title, "brand": clean_brand}
_SHORTEST_SPLIT = 3
"""The layout splits no history shorter than this."""


class RecformerOptions(Section):
    """A folder with umap, smap, train, val, test and meta_data, each .json, also .gz."""

    attributes: Names | None = Field(
        None, description="Attributes of meta_data.json that join the title, as `a,b`; all of them when absent."
    )


def _read(path: Path | None, options: RecformerOptions) -> RawData:
    if path is None or not path.is_dir():
        raise BadInput(f"{path or 'format recformer'}: name a folder with umap.json, smap.json, train.json, …")
    names = ("umap", "smap", "train", "val", "test", "meta_data")
    paths = {name: _find(path, f"{name}.json") for name in names}
    documents = {name: _load(file) for name, file in paths.items()}
    user_ids, item_ids = list(documents["umap"]), list(documents["smap"])
    items, lengths = _join(path, documents)
    attributes = _attributes(item_ids, documents["meta_data"], options, paths["meta_data"])
    untold = sum(item not in documents["meta_data"] for item in item_ids)
    return RawData(
        item_ids=item_ids,
        attributes=attributes,
        user_ids=user_ids,
        users=np.repeat(np.arange(len(user_ids), dtype=np.int32), lengths),
        items=np.frombuffer(items, np.int32),
        times=np.arange(len(items)),
        dated=False,
        source_files={file.name: sha256_of(file) for file in paths.values()},
        rules=[f"Item sentences are made of {', '.join(attributes)}, without HTML.", OWN_SPLIT],
        warnings=[f"{untold} items are not in meta_data.json and count as untitled."] if untold else [],
    )


def _find(folder: Path, name: str) -> Path:
    """The file of this name, plain or .gz."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise BadInput(f"{folder}: has no {name}, also .gz")
    return path


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads("\n".join(line for _, line in numbered_lines(path)))
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: must hold one JSON object")
    return document


def _join(folder: Path, documents: Mapping[str, dict[str, Any]]) -> tuple[array[int], list[int]]:
    """All interactions, user by user and oldest first, and each user's number of them."""
    users, items = (_places(folder, name, documents[name]) for name in ("umap", "smap"))
    user_ids = list(documents["umap"])
    _check_parts(folder, documents, users)
    joined, lengths = array("i"), []
    for user, user_id in zip(users, user_ids, strict=True):
        train, *held_out = (documents[part].get(user, []) for part in ("train", "val", "test"))
        if any(len(part) != 1 for part in held_out) and (any(held_out) or len(train) >= _SHORTEST_SPLIT):
            raise BadInput(
                f"{folder}: user {user_id!r} (number {user}) must have one item in val.json and one in test.json"
            )
        history = [*train, *held_out[0], *held_out[1]]
        try:
            joined.extend(items[str(item)] for item in history)
        except KeyError as error:
            message = f"{folder}: user {user_id!r} (number {user}) has item {error.args[0]}, no number of smap.json"
            raise BadInput(message) from error
        lengths.append(len(history))
    return joined, lengths


def _check_parts(folder: Path, documents: Mapping[str, dict[str, Any]], users: Mapping[str, int]) -> None:
    """Every part is a list of items a user, and of known users."""
    for part in ("train", "val", "test"):
        strangers = documents[part].keys() - users.keys()
        if strangers:
            raise BadInput(f"{folder}: {part}.json has user {min(strangers)}, which is no number of umap.json")
        no_list = next((user for user, items in documents[part].items() if not isinstance(items, list)), None)
        if no_list is not None:
            raise BadInput(f"{folder / part}.json: user {no_list} must have a list of items")


def _places(folder: Path, name: str, numbers: Mapping[str, Any]) -> dict[str, int]:
    """Number, as a key of JSON → its place in the file."""
    places = {str(number): place for place, number in enumerate(numbers.values())}
    if len(places) < len(numbers):
        raise BadInput(f"{folder}: {name}.json gives one number to several ids; each needs its own")
    return places


def _attributes(
    item_ids: list[str], meta: Mapping[str, Any], options: RecformerOptions, path: Path
) -> dict[str, list[str]]:
    """Name → [items] texts."""
    rows = [meta.get(item, {}) for item in item_ids]
    for item, row in zip(item_ids, rows, strict=True):
        if not isinstance(row, dict):
            raise BadInput(f'{path}: item {item!r} must be an object of attributes, such as {{"title": …}}')
    columns = list(dict.fromkeys(key for row in rows for key in row))
    title = find_column("title", None, columns, path)
    names = attribute_columns(columns, title, options.attributes, path)
    return {name: [_CLEAN.get(name, clean_list)(row.get(column)) for row in rows] for name, column in names.items()}


RECFORMER = Source(RecformerOptions, _read)
