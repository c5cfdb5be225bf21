"""Which interactions count at all: by date, by rating, and once or every time that a user has an item."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from trainer.config import Section
from trainer.data.sources.base import RawData
from trainer.errors import BadInput

_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_EARLIEST, _LATEST = 10**8, 10**11
"""Unix seconds (the years 1973 and 5138) between which the latest time of a source lies if it is a date."""
_YEARS = range(1900, 2101)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _as_bound(value: Any) -> int | float | str:
    """A number as it is; a date in one ISO form, so that equal dates are equal options."""
    try:
        if isinstance(value, str):
            value = _number_or_date(value.strip())
        if isinstance(value, datetime) and value.tzinfo is None and value.time() == datetime.min.time():
            value = value.date()
        if isinstance(value, date):
            return value.isoformat()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except ValueError:
        pass
    raise ValueError("must be an ISO date such as 2015-01-31, or a number in the unit of the source's times")


def _number_or_date(text: str) -> int | float | datetime:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return datetime.fromisoformat(text)


def _as_repeats(value: Any) -> Any:
    return None if value == "keep" else value


Bound = Annotated[int | float | str, BeforeValidator(_as_bound)]


class SelectionOptions(Section):
    """Which interactions count."""

    since: Bound | None = Field(
        None,
        description="Interactions before it go: an ISO date (2015-01-31, or with a time; UTC unless it says "
        "otherwise), or a number in the unit of the source's times.",
    )
    until: Bound | None = Field(None, description="Interactions at it and later go; written as `since`.")
    min_rating: float | None = Field(None, description="Interactions rated lower, or not at all, go.")
    duplicates: Annotated[Literal["keep", "first", "last"] | None, BeforeValidator(_as_repeats)] = Field(
        None, description="Of a user's interactions with one item only this stays; `keep`, the default, keeps all."
    )


@dataclass(frozen=True, eq=False)
class Selection:
    """What counts.

    Args:
        keep: [interactions] mask.
        removed: interactions that each rule took, by its name.
        rules: one sentence each.
    """

    keep: NDArray[np.bool_]
    removed: dict[str, int] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)

    def take(self, gone: NDArray[np.bool_], name: str, rule: str) -> None:
        """Apply one rule to what the earlier ones left; gone is [interactions]."""
        self.removed[name] = int((self.keep & gone).sum())
        self.keep[gone] = False
        self.rules.append(rule)


def select(raw: RawData, options: SelectionOptions) -> Selection:
    """Apply the date range, then the rating, then what is said of repeats.

    Raises:
        BadInput: if the source has no times or ratings to go by, or a date meets times that are none.
    """
    selection = Selection(np.ones(len(raw.items), bool))
    if options.since is not None:
        bound, words = _in_source_unit("since", options.since, raw)
        selection.take(raw.times < bound, "interactions_before_since", f"Interactions before {words} went.")
    if options.until is not None:
        bound, words = _in_source_unit("until", options.until, raw)
        selection.take(raw.times >= bound, "interactions_from_until_on", f"Interactions from {words} on went.")
    if options.min_rating is not None:
        _by_rating(raw, options.min_rating, selection)
    if options.duplicates is not None:
        rule = f"Of a user's interactions with one item only the {options.duplicates} stayed."
        selection.take(_repeats(raw, options.duplicates, selection.keep), "repeated_interactions", rule)
    return selection


def _in_source_unit(name: str, value: int | float | str, raw: RawData) -> tuple[int | float, str]:
    """A bound among the source's times, and in words.

    The unit of a date is told by the latest time, whose year it must make sensible.
    """
    if not raw.dated:
        raise BadInput(f"{name} needs times, and this source has an order only; leave {name} out")
    latest = raw.times.max(initial=0)
    if not isinstance(value, str):
        if latest >= _EARLIEST and value in _YEARS:
            raise BadInput(f"{name} {value}: is a number in the unit of the source's times; write {value}-01-01")
        return value, f"time {value}"
    unit = next((unit for unit, scale in _UNITS.items() if _EARLIEST <= latest / scale < _LATEST), None)
    if unit is None:
        raise BadInput(
            f"{name} {value}: the source's times end at {latest}, which is no date in Unix seconds, milliseconds or "
            f"finer; give {name} as a number in their own unit"
        )
    moment = datetime.fromisoformat(value)
    passed = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return passed // timedelta(microseconds=1) * _UNITS[unit] // 10**6, f"{value} (the times are Unix {unit})"


def _by_rating(raw: RawData, minimum: float, selection: Selection) -> None:
    if raw.ratings is None:
        raise BadInput("min_rating needs ratings, and this source has none; leave min_rating out")
    missing = np.isnan(raw.ratings)
    selection.take(missing, "interactions_without_rating", "Interactions without a rating went.")
    low = raw.ratings < np.float32(minimum)
    selection.take(low, "interactions_rated_too_low", f"Interactions rated below {minimum:g} went.")


def _repeats(raw: RawData, stays: str, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All but the first (last) of equal (user, item) pairs among `keep`, by time and then by the file's order."""
    rows = np.flatnonzero(keep)
    order = rows[np.lexsort((raw.times[rows], raw.items[rows], raw.users[rows]))]
    same = (np.diff(raw.users[order]) == 0) & (np.diff(raw.items[order]) == 0)
    gone = np.zeros(len(keep), bool)
    gone[order[1:][same] if stays == "first" else order[:-1][same]] = True
    return gone
