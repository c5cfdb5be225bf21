"""The layout in which UniSRec publishes its datasets (Hou et al., KDD 2022; repository RUCAIBox/UniSRec).

    NAME.train.inter, NAME.valid.inter, NAME.test.inter    user_id, item_id_list, item_id: a history and what came next
    NAME.text                                              item id and one string of title, categories and brand
    NAME.user2index, NAME.item2index                       id and the number that stands for it in the .inter files

A training history x_1 … x_n is n - 1 rows, (x_1 … x_{n-1}) → x_n first and (x_1) → x_2 last; rows the other way round
are read as well. Histories are cut to their newest 50 items; `chains` makes them whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import Field

from trainer.config import Section
from trainer.data.sources.base import OWN_SPLIT, RawData, Source
from trainer.data.sources.chains import Steps, join
from trainer.data.sources.clean import clean_text
from trainer.data.sources.files import numbered_lines, sha256_of
from trainer.data.sources.locate import locate
from trainer.data.sources.recbole import open_atomic
from trainer.errors import BadInput

_COLUMNS = ("user_id", "item_id_list", "item_id")
_TRAIN = ".train.inter"
_OTHERS = (".valid.inter", ".test.inter", ".text", ".user2index", ".item2index")


class UnisrecOptions(Section):
    """A folder with NAME.train.inter, .valid.inter, .test.inter, .text, .user2index and .item2index, also .gz."""

    train: str | None = Field(
        None, description="NAME.train.inter, beside the other files of that NAME; the only one when absent."
    )


def _read(path: Path | None, options: UnisrecOptions) -> RawData:
    train_path = locate(path, options.train, "train", f"NAME{_TRAIN}, also .gz", lambda name: _TRAIN in name)
    paths = [train_path, *(_beside(train_path, ending) for ending in _OTHERS)]
    *parts, text, user_index, item_index = paths
    user_ids, users = _read_index(user_index)
    item_ids, items = _read_index(item_index)
    train, *held_out = (_read_steps(part, users, items) for part in parts)
    history_users, history_items = join(train, held_out, user_ids, items)
    titles, untold = _read_titles(text, item_ids)
    return RawData(
        item_ids=item_ids,
        attributes={"title": titles},
        user_ids=user_ids,
        users=history_users,
        items=history_items,
        times=np.arange(len(history_users)),
        dated=False,
        source_files={path.name: sha256_of(path) for path in paths},
        rules=["Titles are the source's texts, whole: where in them a title ends is not known.", OWN_SPLIT],
        warnings=[f"{untold} items have no text or no title in it and count as untitled."] if untold else [],
    )


def _beside(train: Path, ending: str) -> Path:
    """The other file of the same NAME, plain or .gz."""
    name, found, _ = train.name.partition(_TRAIN)
    if not found:
        raise BadInput(f"{train}: the name of a training file ends in {_TRAIN}, also .gz")
    for path in (train.with_name(name + ending), train.with_name(f"{name}{ending}.gz")):
        if path.exists():
            return path
    raise BadInput(f"{train.with_name(name + ending)}: does not exist; it must lie beside {train.name}")


def _read_index(path: Path) -> tuple[list[str], dict[str, int]]:
    """Ids in the order of the file, and the number that stands for each → its place."""
    ids: list[str] = []
    places: dict[str, int] = {}
    for number, line in numbered_lines(path):
        name, _, index = line.rpartition("\t")
        if not name or not index or index in places:
            raise BadInput(f"{path}, line {number}: must hold an id, a tab and a number of its own")
        places[index] = len(ids)
        ids.append(name)
    return ids, places


def _read_steps(path: Path, users: Mapping[str, int], items: Mapping[str, int]) -> Steps:
    file, _ = open_atomic(path)
    missing = [column for column in _COLUMNS if column not in file.columns]
    if missing:
        raise BadInput(f"{path}: has no column {missing[0]}; it must have {', '.join(_COLUMNS)}")
    steps = Steps(file)
    for number, (user, history, target) in file.rows(_COLUMNS):
        try:
            steps.append(number, users[user], history, items[history.rpartition(" ")[2]], items[target])
        except KeyError as error:
            index = "user2index" if user not in users else "item2index"
            raise BadInput(f"{file.where(number)}: {error.args[0]!r} is no number of {index}") from error
    return steps


def _read_titles(path: Path, item_ids: list[str]) -> tuple[list[str], int]:
    """[items] titles, "" without one, and how many are "".

    A text is its fields with ". " behind each, so that one that begins with ". " has an empty title.
    """
    texts: dict[str, str] = {}
    for number, line in numbered_lines(path):
        item, _, text = line.partition("\t")
        if number == 1 and item.startswith("item_id"):
            continue
        if item in texts:
            raise BadInput(f"{path}, line {number}: item {item!r} has a text already; keep one of them")
        texts[item] = "" if text.strip() == "." or text.startswith(". ") else clean_text(text)
    titles = [texts.get(item, "") for item in item_ids]
    return titles, titles.count("")


UNISREC = Source(UnisrecOptions, _read)
