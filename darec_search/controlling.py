"""Being the one controller of a study, wherever its folder lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from darec_search.config import StudyConfig
from darec_search.lease import Lease
from darec_search.shared_folder import SharedFolder
from trainer.errors import BadInput
from trainer.storage import Folder, reached


@contextmanager
def controlling(config: StudyConfig) -> Iterator[Lease]:
    """Be a study's only controller, on whatever machine, with its folder as the last one left it.

    Raises:
        BadInput: if another process is at work on the study, or its folder cannot be used.
        LeaseLost: if another controller takes over meanwhile.
    """
    shared = SharedFolder(config.url) if config.url else None
    where = config.location
    try:
        with reached():
            if shared is not None:
                shared.store.require_create()
            lease = Lease.take(Folder(config.folder) if shared is None else shared.store, where)
    except OSError as error:
        raise BadInput(f"{where}: the study folder cannot be written ({error.strerror})") from error
    try:
        if shared is not None:
            with reached():
                shared.pull(exactly=True)
        yield lease
    except KeyboardInterrupt:
        if lease.lost:  # which is what interrupted
            lease.confirm()
        raise
    finally:
        lease.release()
