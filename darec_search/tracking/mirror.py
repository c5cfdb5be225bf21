"""A tracker kept up to date while a search or trainings run, by one background thread that they never wait for."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from darec_search.credentials import redact
from darec_search.study import Study
from darec_search.tracking import TRACKERS
from darec_search.tracking.base import Synced, Tracker
from darec_search.tracking.trainings import Trainings

logger = logging.getLogger(__name__)


@contextmanager
def mirrored(folder: Path, uri: str | None) -> Iterator[Callable[[], None]]:
    """Keep MLflow up to date with a folder of trainings while they run.

    Args:
        folder: of the trainings; made where it is absent.
        uri: tracking URI; empty for `mlflow.db` in the folder; None to log nothing.

    Yields:
        To be called whenever there is more in the folder.
    """
    if uri is None:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(Trainings(folder), uri or None)
    mirror.start()
    try:
        yield mirror.notify
    finally:
        synced = mirror.close()
        if synced is not None:
            logger.info("%d runs in %s", synced.runs, synced.location)


class Mirror:
    """Keeps a tracker up to date: `start`, `notify` after every event, `close` at the end.

    An outage is one warning; the thread tries again with growing pauses, and a last time at `close`. Nothing here
    raises, and nothing but `close` waits.

    Args:
        shown: what it is to show.
        uri: where the tracker is; None for its default.
        tracker: a name in `TRACKERS`.
        pause_s: least seconds between two syncs; events in between are taken together.
        retry_s: seconds before the first retry after an outage; doubled each time, five minutes at most.
    """

    def __init__(
        self,
        shown: Study | Trainings,
        uri: str | None = None,
        tracker: str = "mlflow",
        *,
        pause_s: float = 1.0,
        retry_s: float = 5.0,
    ) -> None:
        self._shown = shown
        self._where = shown.location if isinstance(shown, Trainings) else shown.config.location
        self._uri = uri
        self._make = TRACKERS[tracker]
        self._name = tracker
        self._pause_s = pause_s
        self._retry_s = retry_s
        self._tracker: Tracker | None = None
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._warned = False
        self._last: Synced | None = None
        self._complete = False
        # A daemon: a tracker that hangs must not keep the search's process from ending.
        self._thread = threading.Thread(target=self._run, name=f"{tracker}-mirror", daemon=True)

    def start(self) -> None:
        """Begin with what the folder holds already."""
        self._changed.set()
        self._thread.start()

    def notify(self) -> None:
        """Something in the folder has changed."""
        self._changed.set()

    def close(self, timeout: float = 60.0) -> Synced | None:
        """Sync a last time and stop.

        Args:
            timeout: seconds to wait for it.

        Returns:
            The last sync, or None with a warning if the tracker does not hold all of it.
        """
        self._closing.set()
        self._changed.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._complete:
            return self._last
        logger.warning("%s does not hold all of it; %s", self._name, self._advice())
        return None

    def _run(self) -> None:
        retry_s = self._retry_s
        while not self._closing.is_set():
            self._changed.wait()
            if self._closing.is_set():
                break
            self._changed.clear()
            if self._sync(live=True):
                retry_s = self._retry_s
                self._closing.wait(self._pause_s)
            else:
                self._changed.set()
                self._closing.wait(retry_s)
                retry_s = min(2 * retry_s, 300.0)
        self._complete = self._sync(live=False)

    def _sync(self, live: bool) -> bool:
        try:
            if self._tracker is None:
                self._tracker = self._make(self._shown, self._uri)
            self._last = self._tracker.sync(live=live)
        except Exception as error:
            self._warn(error)
            return False
        if self._warned:
            logger.info("%s answers again and is up to date: %s", self._name, self._last.location)
            self._warned = False
        return True

    def _warn(self, error: Exception) -> None:
        message = redact(str(error)).splitlines()[0] if str(error) else type(error).__name__
        if self._warned:
            logger.debug("%s still fails: %s", self._name, message)
            return
        self._warned = True
        logger.warning("%s failed (%s); the work goes on; %s", self._name, message.rstrip("."), self._advice())

    def _advice(self) -> str:
        uri = f" --tracking-uri {shlex.quote(redact(self._uri))}" if self._uri else ""
        return f"run `darec-search sync {shlex.quote(self._where)}{uri}` later"
