"""Several files as one, so that an object store holds them whole or not at all.

Eight bytes say how long the head is (little-endian), the head is JSON with each file's relative path and size in order,
and then come their contents. Nothing in it can name a place outside the folder that it is unpacked into.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

SUFFIX = ".files"
_LONGEST_HEAD = 2**24
_CHUNK = 2**20


class Damaged(ValueError):  # noqa: N818 - reads as what it is where it is raised
    """An archive is not what `pack` wrote."""


def pack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Write entries of a folder, with all that is in them, to an archive.

    Args:
        archive: the file to write.
        folder: holds the entries.
        names: relative paths of files and folders.
    """
    roots = [folder / name for name in names]
    files = [file for root in roots for file in ([root] if root.is_file() else sorted(root.rglob("*")))]
    head = [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files if file.is_file()]
    text = json.dumps(head).encode()
    with archive.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, _ in head:
            with (folder / name).open("rb") as content:
                shutil.copyfileobj(content, out, _CHUNK)


def unpack(archive: Path, folder: Path) -> None:
    """Write all files of an archive into a folder.

    Raises:
        Damaged: if it is cut short, or no archive, or names a place outside of the folder.
    """
    with archive.open("rb") as source:
        for name, size in _head(source):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                _copy(source, out, size)
        if source.read(1):
            raise Damaged("there is more in it than its head says")


def _head(source: BinaryIO) -> list[tuple[str, int]]:
    length = int.from_bytes(source.read(8), "little")
    if length > _LONGEST_HEAD:
        raise Damaged("it is no archive")
    try:
        head = [(str(name), int(size)) for name, size in json.loads(source.read(length))]
    except (ValueError, TypeError) as error:
        raise Damaged(f"its head cannot be read: {error}") from error
    for name, size in head:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name or size < 0:
            raise Damaged(f"it names {name!r}")
    return head


def _copy(source: BinaryIO, out: BinaryIO, size: int) -> None:
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise Damaged("it is cut short")
        out.write(chunk)
        size -= len(chunk)
