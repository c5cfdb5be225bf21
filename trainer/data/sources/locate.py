"""Files of a source folder, by option or by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.errors import BadInput


def locate(folder: Path | None, named: str | None, option: str, expected: str, fits: Callable[[str], bool]) -> Path:
    """The file that an option names, or the only one in the source folder whose name fits.

    Args:
        folder: the source folder, if the user named one.
        named: the option's value; relative to the folder when there is one.
        option: its name.
        expected: the names that fit, for messages.
        fits: whether a name fits.

    Raises:
        BadInput: if there is no such folder, or not exactly one such file.
    """
    if named is not None:
        return folder / named if folder is not None and folder.is_dir() else Path(named)
    if folder is None:
        raise BadInput(f"this format needs a source folder with {expected}, or the option {option}")
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise BadInput(f"{folder}: {state}; name a folder with {expected}, or the file by the option {option}")
    candidates = sorted(path for path in folder.iterdir() if path.is_file() and fits(path.name))
    if not candidates:
        raise BadInput(f"{folder}: has no {option} file; it must hold {expected}")
    if len(candidates) > 1:
        names = " and ".join(path.name for path in candidates)
        raise BadInput(f"{folder}: holds {names}; say which one by the option {option}")
    return candidates[0]
