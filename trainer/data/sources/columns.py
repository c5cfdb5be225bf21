"""Which column is which, by name.

Names are compared without case and without anything but letters and digits: `Item ID`, `item_id` and `itemId` are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from trainer.errors import BadInput

_ITEM = ("itemid", "item", "parentasin", "asin", "productid", "product", "movieid", "bookid", "songid", "iid", "sku")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "item_id": (*_ITEM, "id"),
    "interaction_item_id": _ITEM,
    "user_id": ("userid", "user", "reviewerid", "customerid", "memberid", "visitorid", "sessionid", "uid"),
    "timestamp": (
        "timestamp",
        "time",
        "unixreviewtime",
        "unixtime",
        "unixtimestamp",
        "datetime",
        "date",
        "ts",
        "order",
    ),
    "rating": ("rating", "overall", "stars", "score"),
    "title": ("title", "itemtitle", "producttitle", "movietitle", "booktitle", "name", "itemname", "productname"),
    "brand": ("brand", "brandname", "manufacturer", "store"),
    "categories": ("categories", "category", "itemcategory", "genres", "genre", "class"),
}
"""What each column is looked for as, best first."""

_COPIES = ("id", "text", "rawtext", "fulltext", "sentence")
_LINKS = ("url", "link", "image", "images", "imageurl", "imageurlhighres", "imurl", "video", "videos")
_LISTS = (
    "alsobuy",
    "alsobought",
    "alsoview",
    "alsoviewed",
    "boughttogether",
    "buyafterviewing",
    "related",
    "similaritem",
)
LEFT_OUT = frozenset((*_COPIES, *_LINKS, *_LISTS))
"""Item columns that are no attribute unless they are asked for: copies of the text, links, lists of other items."""

RESERVED = ("id", "sentence")


def split_at_commas(value: Any) -> Any:
    """`a, b` as its parts, since a command line has no lists."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(split_at_commas)]


def find_column(role: str, chosen: str | None, columns: Sequence[str], path: Path) -> str:
    """The column that plays a role: the chosen one, or the first synonym.

    Raises:
        BadInput: if there is none; the message names the columns found.
    """
    column = chosen if chosen is not None else guess_column(role, columns)
    if column is not None and column in columns:
        return column
    found = ", ".join(columns)
    if chosen is not None:
        raise BadInput(f"{path}: has no column {chosen!r} (option {role}); it has {found}")
    raise BadInput(f"{path}: has no column for {role}; it has {found}; name one by the option {role}")


def guess_column(role: str, columns: Sequence[str]) -> str | None:
    """The first synonym of a role among the columns, None without one."""
    by_name = {_plain(column): column for column in reversed(columns)}
    return next((by_name[name] for name in SYNONYMS[role] if name in by_name), None)


def attribute_columns(columns: Sequence[str], title: str, chosen: Sequence[str] | None, path: Path) -> dict[str, str]:
    """Attribute name → item column, in the order of the sentence. The title leads and is always there.

    Args:
        columns: the item columns without the id.
        title: the title's column.
        chosen: the columns that were asked for; None for all but `LEFT_OUT`.
        path: the items file, for messages.

    Raises:
        BadInput: if a chosen column is missing, or a name is reserved or there twice.
    """
    for column in chosen or ():
        if column not in columns:
            raise BadInput(f"{path}: has no column {column!r} (option attributes); it has {', '.join(columns)}")
    wanted = list(columns if chosen is None else chosen)
    names = {title: "title"}
    for role in ("brand", "categories"):
        guessed = guess_column(role, [column for column in wanted if column not in names])
        if guessed is not None:
            names[guessed] = role
    for column in wanted:
        if column not in names and (chosen is not None or _plain(column) not in LEFT_OUT):
            names[column] = column.lower()
    for column, name in names.items():
        if name in RESERVED or list(names.values()).count(name) > 1:
            raise BadInput(f"{path}: column {column!r} would be an attribute named {name!r}, which is taken; rename it")
    return {name: column for column, name in names.items()}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
