"""The contract of a tracker."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True)
class Champion:
    """The model that a registry holds to be the best, as far as a new study needs to know it.

    Args:
        model: name of the registered model.
        version: of it.
        study: id of the study that it came from.
        fingerprint: of the data that it was trained and measured on.
        bits: its architecture, layer by layer.
        weights: all three λ by name.
        value: its MRR on that data's test split.
    """

    model: str
    version: int
    study: str
    fingerprint: str
    bits: tuple[int, ...]
    weights: Mapping[str, float]
    value: float


class Tracker(Protocol):
    """Holds a copy of a study folder, or of a folder of trainings.

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

    def champion(self) -> Champion | None:
        """The model that holds the place this study's winner is after.

        None, with a warning where that is worth one, if there is none or the tracker does not answer; never raises.
        """
        ...
