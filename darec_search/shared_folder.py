"""A study folder at a URL, and this machine's copy of it, with which all else works.

An index in the copy says which version of a file at the URL it holds, so that only what is new crosses the network. It
is a log: processes of one machine append to it and read each other's lines.

Not copied are checkpoints, which workers fetch by themselves, and hidden files; MLflow's own files and Ray's stay
on the machine that wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.storage import Entry, Store, copy_of, each

_INDEX = ".index.jsonl"
_HERE_ONLY = ("mlflow.db", "mlartifacts", "ray")


@dataclass(frozen=True)
class _Held:
    """A file of the copy as it was when it was the same as the one at the URL."""

    tag: str
    size: int
    written: int
    """Nanoseconds, by this machine's file system."""


class SharedFolder:
    """The folder at a URL and its local copy.

    Args:
        url: of the folder.

    Raises:
        BadInput: if the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.folder = copy_of(url, "studies")
        self._held: dict[str, _Held] = {}
        self._read = 0
        """Bytes of the index that are in `_held`."""

    @property
    def url(self) -> str:
        """Of the folder."""
        return self.store.url

    def pull(self, under: str = "", exactly: bool = False) -> None:
        """Bring the copy up to date with the URL.

        A file that another process of this machine has just written and not yet published is left as it is, unless
        `exactly`.

        Args:
            under: a file or folder in it; everything when empty.
            exactly: also undo what differs from the URL and was never published, as a stop may have left it; for
                whoever is alone at work on the study.

        Raises:
            StorageError: if the URL cannot be read.
        """
        self._look()
        there = {name: entry for name, entry in self.store.entries(under).items() if _copied(name)}
        each(
            lambda name: self._take(name, there[name]),
            [name for name, entry in there.items() if not self._has(name, entry, exactly)],
        )
        here = set(self._files(under)) if exactly else {name for name in self._held if _within(name, under)}
        for name in here - there.keys():
            (self.folder / name).unlink(missing_ok=True)
            self._forget(name)

    def publish(self, *names: str) -> None:
        """Write files and folders of the copy to the URL, so that it holds them as they are here.

        Raises:
            StorageError: if the URL cannot be written.
        """
        self._look()
        for under in names:
            here = [name for name in self._files(under) if self._changed(name)]
            each(lambda name: self._keep(name, self.store.upload(self.folder / name, name)), here)
            gone = [name for name in self._held if _within(name, under) and not (self.folder / name).exists()]
            self.store.remove(gone)
            for name in gone:
                self._forget(name)

    def remove(self, under: str) -> None:
        """Remove a file or folder here and at the URL, checkpoints included.

        Raises:
            StorageError: if the URL cannot be written.
        """
        self.store.remove(self.store.names(under))
        for name in self._files(under):
            (self.folder / name).unlink(missing_ok=True)
            self._forget(name)

    def _files(self, under: str) -> list[str]:
        root = self.folder / under
        found: Iterable[Path] = [root] if root.is_file() else root.rglob("*")
        names = (file.relative_to(self.folder).as_posix() for file in found if file.is_file())
        return [name for name in names if _copied(name)]

    def _has(self, name: str, entry: Entry, exactly: bool) -> bool:
        held, file = self._held.get(name), self.folder / name
        if held is None or held.tag != entry.tag or not file.exists():
            return False
        return not (exactly and self._changed(name))

    def _changed(self, name: str) -> bool:
        held, found = self._held.get(name), (self.folder / name).stat()
        return held is None or (held.size, held.written) != (found.st_size, found.st_mtime_ns)

    def _take(self, name: str, entry: Entry) -> None:
        if self.store.download(name, self.folder / name):
            self._keep(name, entry)

    def _keep(self, name: str, entry: Entry) -> None:
        found = (self.folder / name).stat()
        self._held[name] = held = _Held(entry.tag, found.st_size, found.st_mtime_ns)
        self._note([name, held.tag, held.size, held.written])

    def _forget(self, name: str) -> None:
        if self._held.pop(name, None) is not None:
            self._note([name])

    def _note(self, line: list[object]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _INDEX).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _look(self) -> None:
        """Read what has been added to the index."""
        try:
            with (self.folder / _INDEX).open("rb") as file:
                file.seek(self._read)
                lines = file.read()
        except FileNotFoundError:
            self._held, self._read = {}, 0
            return
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for text in whole.splitlines():
            try:
                name, *held = json.loads(text)
            except ValueError:  # two processes wrote at once, or one was killed at it: those files are copied again
                continue
            if held:
                self._held[name] = _Held(*held)
            else:
                self._held.pop(name, None)


def _copied(name: str) -> bool:
    parts = name.split("/")
    mlflow = parts[0].startswith("mlflow.db")  # SQLite's helpers bear its name
    return not (mlflow or parts[0] in _HERE_ONLY or "checkpoint" in parts or any(part[0] == "." for part in parts))


def _within(name: str, under: str) -> bool:
    return not under or name == under or name.startswith(f"{under}/")
