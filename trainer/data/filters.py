"""Which interactions stay, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from trainer.config import Positive
from trainer.data.ragged import Ragged
from trainer.data.selection import SelectionOptions, select
from trainer.data.sources.base import RawData
from trainer.data.sources.columns import Names
from trainer.errors import BadInput

_FEWEST_USERS = _FEWEST_ITEMS = 2
_SHORTHANDS = {
    "k_core": ("min_item_interactions", "min_user_interactions"),
    "min_length": ("min_user_interactions",),
}


class FilterOptions(SelectionOptions):
    """Which interactions, items and users stay, and what a sentence says; the same for every format."""

    min_item_interactions: Positive = Field(4, description="Items with fewer interactions go.")
    min_user_interactions: Annotated[int, Field(ge=3)] = Field(
        4, description="Users with fewer interactions go; at least 3, since the split holds two out."
    )
    min_length: int | None = Field(
        None, exclude=True, description="The same as min_user_interactions: the least length of a history."
    )
    sentence: Names | None = Field(
        None,
        description="Attributes that an item sentence is made of, in this order, as `a,b`; all of them, title, brand "
        "and categories first, when absent.",
    )
    k_core: int | None = Field(None, exclude=True, description="Both thresholds at once.")

    @model_validator(mode="before")
    @classmethod
    def _resolve_shorthands(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Equal filters are equal options, however they were written."""
        resolved = {name: value for name, value in options.items() if value is not None}
        for shorthand, names in _SHORTHANDS.items():
            if shorthand in resolved:
                both = sorted(set(resolved) & {*names, *_SHORTHANDS} - {shorthand})
                if both:
                    raise ValueError(f"{shorthand} says {' and '.join(names)}; leave out {' and '.join(both)}")
                resolved |= dict.fromkeys(names, resolved[shorthand])
        return resolved


@dataclass(frozen=True, eq=False)
class Kept:
    """What the filters leave.

    Args:
        items: [kept items] indices into the raw items, rising.
        users: [kept users] indices into the raw users, rising.
        histories: per kept user, positions in `items`, oldest first.
        removed: what each filter took, by its name.
        rules: what was chosen by date, rating and repetition, one sentence each.
        warnings: about ties in time.
    """

    items: NDArray[np.integer]
    users: NDArray[np.integer]
    histories: Ragged
    removed: dict[str, int]
    rules: list[str]
    warnings: list[str]


def apply_filters(raw: RawData, options: FilterOptions) -> Kept:
    """What `select` leaves, untitled items out, then rare items and short users until nothing changes.

    Raises:
        BadInput: if fewer than two users or items are left.
    """
    titled = np.array([bool(title.strip()) for title in raw.attributes["title"]], bool)
    selection = select(raw, options)
    keep, removed = _iterate(raw, selection.keep & titled[raw.items], options)
    removed = {**selection.removed, "items_without_title": int((~titled).sum()), **removed}
    users, items, times = raw.users[keep], raw.items[keep], raw.times[keep]
    kept_items, kept_users = (np.flatnonzero(np.bincount(part)) for part in (items, users))
    removed["items_without_interactions"] = (
        len(titled) - len(kept_items) - removed["items_without_title"] - removed["items_with_too_few_interactions"]
    )
    removed["interactions"] = int(len(keep) - keep.sum())
    if len(kept_users) < _FEWEST_USERS or len(kept_items) < _FEWEST_ITEMS:
        raise BadInput(_too_few(raw, len(kept_users), len(kept_items), removed, options))
    # lexsort is stable, so that the file's order decides between equal times.
    order = np.lexsort((times, users))
    lengths = np.bincount(users, minlength=len(raw.user_ids))[kept_users]
    histories = Ragged.from_lengths(np.searchsorted(kept_items, items[order]), lengths)
    return Kept(kept_items, kept_users, histories, removed, selection.rules, _tie_warnings(times[order], histories))


def _iterate(raw: RawData, keep: NDArray[np.bool_], options: FilterOptions) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """What stays of the mask `keep`, [interactions], and how many items and users went."""
    rare_items: set[int] = set()
    short_users: set[int] = set()
    while True:
        item_counts = np.bincount(raw.items[keep], minlength=len(raw.item_ids))
        rare = (item_counts > 0) & (item_counts < options.min_item_interactions)
        keep &= ~rare[raw.items]
        user_counts = np.bincount(raw.users[keep], minlength=len(raw.user_ids))
        short = (user_counts > 0) & (user_counts < options.min_user_interactions)
        keep &= ~short[raw.users]
        rare_items.update(np.flatnonzero(rare).tolist())
        short_users.update(np.flatnonzero(short).tolist())
        if not rare.any() and not short.any():
            break
    return keep, {
        "items_with_too_few_interactions": len(rare_items),
        "users_with_too_few_interactions": len(short_users),
    }


def _too_few(raw: RawData, users: int, items: int, removed: dict[str, int], options: FilterOptions) -> str:
    others = ("interactions", *(name for name in removed if name.startswith(("items", "users"))))
    chosen = "".join(f"{count} {name.replace('_', ' ')}, " for name, count in removed.items() if name not in others)
    return (
        f"too little data: of {len(raw.user_ids)} users, {len(raw.item_ids)} items and {len(raw.items)} interactions "
        f"{users} users and {items} items are left (at least {_FEWEST_USERS} and {_FEWEST_ITEMS} are needed) after "
        f"{chosen}{removed['items_without_title']} items without a title, "
        f"{removed['items_with_too_few_interactions']} items with fewer than {options.min_item_interactions} "
        f"interactions and {removed['users_with_too_few_interactions']} users with fewer than "
        f"{options.min_user_interactions} went; lower min_item_interactions or min_user_interactions, or bring more "
        "data"
    )


def _tie_warnings(times: NDArray[np.generic], histories: Ragged) -> list[str]:
    """Who has equal times, and for whom they decide what is held out; times are [interactions], sorted by user."""
    users = histories.row_of_value
    tie = (times[1:] == times[:-1]) & (users[1:] == users[:-1])
    if not tie.any():
        return []
    place_from_end = (histories.offsets[users + 1] - np.arange(len(users)))[1:]
    tied_users, deciding = (len(np.unique(users[1:][mask])) for mask in (tie, tie & (place_from_end <= 2)))
    return [
        f"{tied_users} of {len(histories)} users have equal times; there the order of the file was kept, and for "
        f"{deciding} of them it decides which item is held out."
    ]
