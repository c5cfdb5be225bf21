"""The errors that a user can mend."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(ValueError):  # noqa: N818 - reads as what it is where it is raised
    """Bad input: one clear sentence that names the file, row or field and what to do. Exit code 2."""


class NotHere(BadInput):
    """What a file names rightly but this machine does not have yet: raw data, a model of a hub that does not answer.

    A run cannot begin without it; a check of the file can end well.
    """


class NoSpace(OSError):  # noqa: N818 - as above
    """A disk is full: no fault of the run that met it, which goes on from its checkpoint once there is room."""


@contextmanager
def no_space_told(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk, or of a spent quota, into `NoSpace` with a sentence that names the folder."""
    try:
        yield
    except NoSpace:
        raise
    except Exception as error:
        if not _is_no_space(error):
            raise
        place = getattr(error, "filename", None) or folder
        raise NoSpace(f"{place}: no space is left on its disk; make room and start the same command again") from error


def _is_no_space(error: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    # Safetensors has an error of its own, which names the code in its text.
    return any(f"(os error {code})" in str(error) for code in full)
