"""Interactions while they are read: arrays that grow, no Python object a row."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.sources.files import as_rating


class Times:
    """Growing times: exact integers until the first fraction, doubles from there on."""

    def __init__(self) -> None:
        self._values: array[Any] = array("q")

    def append(self, value: int | float) -> None:
        """One more time."""
        try:
            self._values.append(value)
        except (TypeError, OverflowError):
            self._values = array("d", [*self._values, value])

    def numpy(self) -> NDArray[Any]:
        """All of them, [interactions]."""
        return np.frombuffer(self._values, self._values.typecode)


@dataclass
class Log:
    """Interactions in file order.

    Args:
        user_index: user id → index, in the order of the first interaction.
        users, items: [interactions] indices.
        times: [interactions].
        ratings: [interactions], NaN where there is none; empty in a log without ratings.
    """

    user_index: dict[str, int] = field(default_factory=dict)
    users: array[int] = field(default_factory=lambda: array("i"))
    items: array[int] = field(default_factory=lambda: array("i"))
    times: Times = field(default_factory=Times)
    ratings: array[float] = field(default_factory=lambda: array("f"))

    def append(self, user: str, item: int, time: int | float) -> None:
        """One more interaction."""
        self.users.append(self.user_index.setdefault(user, len(self.user_index)))
        self.items.append(item)
        self.times.append(time)

    def append_rating(self, value: Any) -> None:
        """The rating of the latest interaction, as the file has it."""
        self.ratings.append(as_rating(value))

    def rating_array(self) -> NDArray[np.float32] | None:
        """[interactions]; None where no interaction has one."""
        return known_ratings(np.frombuffer(self.ratings, np.float32))


def known_ratings(ratings: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """[interactions]; None where all are NaN."""
    return None if np.isnan(ratings).all() else ratings
