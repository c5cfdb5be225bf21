"""The contract of a tracker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Synced:
    """What one sync did.

    Args:
        runs: runs of the study that the tracker holds now, the parent included.
        created: how many of them this sync created.
        updated: how many older ones it changed.
        location: where they are, safe to print.
        model: registered model and version of the champion, `name/3`; None before promotion.
    """

    runs: int
    created: int
    updated: int
    location: str
    model: str | None = None


class Tracker(Protocol):
    """Holds a copy of a study folder.

    Life cycle: construction contacts nobody; `sync` may be called any number of times, from one thread at a time, and
    after an error again. It brings the copy up to date with the folder and changes nothing that is up to date already.
    """

    def sync(self, live: bool = False) -> Synced:
        """Bring the copy up to date.

        Args:
            live: a search is at work on the folder, so trials that have begun count as running; otherwise as stopped.

        Raises:
            BadInput: if the tracker cannot be reached.
            Exception: whatever the tracker's library raises in the middle of the work.
        """
        ...
