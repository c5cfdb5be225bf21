"""Whole histories out of rows "history → next item", whose histories may be cut to their newest items.

The targets make the history. A user's rows are chained: the history of each ends with the target of the row before it
in time, and the shortest history begins the whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.data.sources.files import TableFile
from trainer.errors import BadInput

Integers = NDArray[np.int32]


@dataclass
class Steps:
    """Rows while they are read.

    Args:
        file: for messages.
        numbers: [rows] the place of each in the file.
        users, ends, targets: [rows] user, last item of the history, next item.
        shortest: user → the shortest history among the user's rows, as it is written.
    """

    file: TableFile
    numbers: array[int] = field(default_factory=lambda: array("q"))
    users: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("i"))
    targets: array[int] = field(default_factory=lambda: array("i"))
    shortest: dict[int, str] = field(default_factory=dict)

    def append(self, number: int, user: int, history: str, end: int, target: int) -> None:
        """One more row; history is items separated by spaces, end the last of them."""
        self.numbers.append(number)
        self.users.append(user)
        self.ends.append(end)
        self.targets.append(target)
        if user not in self.shortest or history.count(" ") < self.shortest[user].count(" "):
            self.shortest[user] = history

    def arrays(self) -> tuple[Integers, Integers, Integers]:
        """Users, ends and targets, each [rows]."""
        users, ends, targets = (np.frombuffer(part, np.int32) for part in (self.users, self.ends, self.targets))
        return users, ends, targets


def join(
    train: Steps, held_out: Sequence[Steps], user_ids: Sequence[str], items: Mapping[str, int]
) -> tuple[Integers, Integers]:
    """Users and items of all interactions, oldest first within a user.

    Args:
        train: any number of rows a user.
        held_out: the parts that follow, in time; one row a user each.
        user_ids: [users], for messages.
        items: an item as it is written → its index.

    Raises:
        BadInput: if a row does not follow from what is before it, or a user lacks a held-out row.
    """
    heads = {**held_out[0].shortest, **train.shortest}
    who = sorted(heads)
    head_items = [[items[name] for name in heads[user].split()] for user in who]
    users = [np.repeat(np.array(who, np.int32), [len(head) for head in head_items])]
    targets = [np.array([item for head in head_items for item in head], np.int32)]
    last = np.full(len(user_ids), -1, np.int32)
    last[users[0]] = targets[0]  # of equal indices the last one stays
    order = _in_time(train)
    for part, rows in ((train, order), *((part, _one_a_user(part, user_ids)) for part in held_out)):
        part_users, part_ends, part_targets = (values[rows] for values in part.arrays())
        first = np.flatnonzero(np.diff(part_users, prepend=-1))
        broken = first[part_ends[first] != last[part_users[first]]]
        if len(broken):
            raise BadInput(_broken(part, rows[broken].min()))
        last[part_users] = part_targets
        users.append(part_users)
        targets.append(part_targets)
    return np.concatenate(users), np.concatenate(targets)


def _in_time(steps: Steps) -> NDArray[np.int64]:
    """The rows by user, oldest first, [rows]: the file has them newest first, or the other way round."""
    users, ends, targets = steps.arrays()
    order = np.argsort(users, kind="stable")
    same = np.diff(users[order]) == 0
    follows = ends[order][:-1] == targets[order][1:], ends[order][1:] == targets[order][:-1]
    if (follows[0] | ~same).all():
        return np.lexsort((-np.arange(len(users)), users))
    if (follows[1] | ~same).all():
        return order
    raise BadInput(_broken(steps, order[:-1][same & ~follows[0] & ~follows[1]].min(initial=len(users) - 1)))


def _one_a_user(steps: Steps, user_ids: Sequence[str]) -> NDArray[np.int64]:
    users, _, _ = steps.arrays()
    counts = np.bincount(users, minlength=len(user_ids))
    if (counts != 1).any():
        user = int(np.argmax(counts != 1))
        raise BadInput(
            f"{steps.file.path}: user {user_ids[user]!r} has {counts[user]} rows; every user has one held-out item here"
        )
    return np.argsort(users)


def _broken(steps: Steps, row: int) -> str:
    return (
        f"{steps.file.where(steps.numbers[row])}: the history does not follow from the user's other rows; each must "
        "end with the item that comes next after the history before it"
    )
