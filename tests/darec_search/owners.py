"""Holders of leases, for tests."""

from __future__ import annotations

import dataclasses
import json

from darec_search.lease import Owner
from trainer.storage import Objects


def elsewhere(**changes: object) -> Owner:
    """A controller on another machine."""
    return dataclasses.replace(Owner.this(), **{"host": "node-3", "machine": "another", "user": "ada", **changes})


def held_by(objects: Objects, owner: Owner, number: int = 1) -> None:
    """Write a lease as its owner would."""
    objects.write(f".lease/{number:06d}.json", json.dumps(dataclasses.asdict(owner)).encode())
