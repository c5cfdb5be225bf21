"""The small foreign datasets in `fixtures/`: one made-up kitchen shop, told in each layout."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare

HISTORIES = {"u1": "abcde", "u2": "bcdea", "u3": "cdeaba", "u4": "deabc"}
TITLES = {"a": "Copper kettle", "b": "Tea & spice tin", "c": "Oak tray", "d": "Linen towel", "e": "Glass jar"}


def copied(format: str, folder: Path, gz: bool = False) -> Path:
    """A copy of a fixture that a test may spoil."""
    shutil.copytree(Path(__file__).parent / "fixtures" / format, folder / format)
    if gz:
        for path in (folder / format).iterdir():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return folder / format


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def prepared(format: str, source: Path, out: Path, **options) -> Dataset:
    """All of the shop by default: no user and no item is too rare."""
    prepare(format, source, out, **{"min_item_interactions": 1, "min_user_interactions": 3} | options)
    return Dataset.open(out)


def histories(data: Dataset) -> dict[str, str]:
    """User → item letters (an id's last), oldest first, the held-out ones at the end."""
    test = data.open_test()
    everything = {
        user: [*data.train[place], data.validation[place], test[place]] for place, user in enumerate(data.user_ids)
    }
    return {user: "".join(data.item_ids[item][-1].lower() for item in items) for user, items in everything.items()}
