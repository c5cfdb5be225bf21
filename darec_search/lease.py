"""The lease of a study: whoever holds it may write to the study, and nobody else can begin.

`.lease/000007.json` is the seventh lease: who took it, where, since when. It is created on the condition that there is
none of that number, so of several takers one wins, on an object store as on a local disk. The highest number counts.
`000007.beat` is a counter that the holder raises every few seconds, `000007.released` says that it has ended.

A second controller takes over when the newest lease was released; when its holder ran on this machine and is dead; or
when its counter has stood still for a minute by the second controller's own steady clock, so that no two clocks need
agree. Otherwise it is told who is at work. A holder that finds a higher number than its own stops at once: before
each write it looks, unless it looked moments ago, and its heartbeat looks too.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from trainer.errors import BadInput
from trainer.storage import Objects, StorageError

BEAT_S = 5.0
"""Seconds between two heartbeats."""
TIME_TO_LIVE_S = 60.0
"""Seconds without a heartbeat after which a holder counts as dead; NFS may keep what it knows of a file as long."""
_LOOK_S = 0.5
"""Seconds between two looks at another one's heartbeat."""
_DYING_S = 1.0
"""How long a process of this machine may take to end after it was killed."""
_FAREWELL_S = 10.0
"""How long an end waits for a heartbeat under way, as of storage that does not answer."""
_FOLDER = ".lease"

logger = logging.getLogger(__name__)


class LeaseLost(KeyboardInterrupt):
    """Another controller has taken the study over; this one has to stop and write nothing more."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease."""

    host: str
    machine: str
    """Names the running system in which `pid` means something."""
    pid: int
    born: float
    """When the process began, Unix seconds: a number may have been given to another process since."""
    user: str
    since: str
    """UTC."""

    @classmethod
    def this(cls) -> Owner:
        """This process."""
        import psutil  # whoever does not control a study, such as `recommend`, has no need of it

        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(socket.gethostname(), _machine(), os.getpid(), psutil.Process().create_time(), _user(), now)

    @property
    def is_dead(self) -> bool:
        """Whether it ran on this machine and is known to have ended."""
        return self._is_here and not self._runs

    @property
    def is_alive(self) -> bool:
        """Whether it is known to run, on this machine."""
        return self._is_here and self._runs

    @property
    def _is_here(self) -> bool:
        return bool(self.machine) and self.machine == _machine()

    @property
    def _runs(self) -> bool:
        import psutil

        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.born) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class Lease:
    """A lease that this process holds, until `release`. Get one by `take`."""

    def __init__(self, objects: Objects, where: str, number: int, beat_s: float) -> None:
        self._objects, self._where, self._number, self._beat_s = objects, where, number, beat_s
        self._lost: str | None = None
        self._looked = _steady()
        self._ended = threading.Event()
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls, objects: Objects, where: str, *, time_to_live_s: float = TIME_TO_LIVE_S, beat_s: float = BEAT_S
    ) -> Self:
        """Take the lease of the study whose files these are; waits up to `time_to_live_s` for a holder that is silent.

        Args:
            objects: the study's folder.
            where: its name in messages.
            time_to_live_s: seconds without a heartbeat that a holder is granted.
            beat_s: seconds between this one's heartbeats.

        Raises:
            BadInput: if another process is at work on the study, or the storage lets two create the same file.
            StorageError: if the storage does not answer.
            OSError: if the folder cannot be written.
        """
        while True:
            newest = _newest(objects)
            if newest:
                _refuse_living(objects, where, newest, time_to_live_s)
            content = json.dumps(asdict(Owner.this())).encode()
            if not objects.create(_name(newest + 1, "json"), content):
                continue  # another one was faster; look at that one
            if objects.create(_name(newest + 1, "json"), content):
                raise BadInput(
                    f"{where}: this storage overwrites a file that was to be created only where there is none "
                    "(If-None-Match), so two controllers could run; use a newer version of it, or a shared folder"
                )
            if _newest(objects) == newest + 1:
                return cls(objects, where, newest + 1, beat_s)

    def confirm(self) -> None:
        """Go on only if the study is still this process's: before anything is written.

        Raises:
            LeaseLost: if another controller has taken over.
        """
        if self._lost is None and _steady() - self._looked > 2 * self._beat_s:
            self._look()  # the heartbeat has been held up, as of a process that was stopped
        if self._lost is not None:
            raise LeaseLost(self._lost)

    @property
    def lost(self) -> bool:
        """Whether another controller has taken over."""
        return self._lost is not None

    def release(self) -> None:
        """Let the next one begin at once."""
        self._ended.set()
        self._thread.join(_FAREWELL_S)
        if self._lost is None:
            try:
                self._objects.write(_name(self._number, "released"), b"")
            except (StorageError, OSError) as error:
                logger.warning("%s: the lease is not released (%s); another machine will wait", self._where, error)

    def _keep(self) -> None:
        """Show that this process lives, until it ends or the lease is lost."""
        count = 0
        while not self._ended.wait(self._beat_s):
            count += 1
            try:
                self._look()
                if self._lost is None:
                    self._objects.write(_name(self._number, "beat"), str(count).encode())
            except (StorageError, OSError) as error:
                logger.warning("%s: no heartbeat (%s)", self._where, error)
            if self._lost is not None:
                logger.error("%s", self._lost)
                if self._in_main_thread:
                    # Wherever it waits; a signal that only Python knew of would not wake it.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _look(self) -> None:
        began = _steady()
        found = self._objects.read(_name(self._number + 1, "json"))
        if found is not None:
            owner = _owner(found)
            self._lost = (
                f"{self._where}: {_told(owner)} has taken this study over, since this process gave no sign of life for "
                "too long; it stops here and the study goes on there"
            )
        self._looked = began


def _refuse_living(objects: Objects, where: str, number: int, time_to_live_s: float) -> None:
    """Return once the holder of a lease counts as gone.

    Raises:
        BadInput: if it lives.
    """
    if objects.read(_name(number, "released")) is not None:
        return
    owner = _owner(objects.read(_name(number, "json")))
    if owner is not None and _dies(owner):
        return
    first, began, told = objects.read(_name(number, "beat")), _steady(), False
    while objects.read(_name(number, "released")) is None:
        if _newest(objects) != number:
            return  # somebody has taken over; what is said is said of that one
        if (owner is not None and owner.is_alive) or objects.read(_name(number, "beat")) != first:
            raise BadInput(
                f"{where}: another process is at work on this study: {_told(owner)}, since "
                f"{owner.since if owner else 'an unknown time'}; stop it there, or wait until it ends"
            )
        if _steady() - began > time_to_live_s:
            logger.warning("%s: %s gave no sign of life; taking over", where, _told(owner))
            return
        if not told:
            logger.warning("%s: waiting for a sign of life of %s", where, _told(owner))
            told = True
        time.sleep(min(_LOOK_S, time_to_live_s / 4))


def _dies(owner: Owner) -> bool:
    """Whether a process of this machine has ended, or is about to."""
    until = _steady() + _DYING_S
    while owner.is_alive and _steady() < until:
        time.sleep(_DYING_S / 20)
    return owner.is_dead


def _newest(objects: Objects) -> int:
    """The number of the newest lease; 0 if there is none."""
    names = (Path(name) for name in objects.names(_FOLDER))
    return max((int(name.stem) for name in names if name.suffix == ".json" and name.stem.isdigit()), default=0)


def _name(number: int, kind: str) -> str:
    return f"{_FOLDER}/{number:06d}.{kind}"


def _owner(content: bytes | None) -> Owner | None:
    try:
        return Owner(**json.loads(content or b""))
    except (ValueError, TypeError):
        return None


def _told(owner: Owner | None) -> str:
    return f"process {owner.pid} of {owner.user} on {owner.host}" if owner else "an unknown process"


def _machine() -> str:
    """The kernel that runs, and the world of process numbers in it (a container has its own); empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return f"{socket.gethostname()}/{uuid.getnode()}"


def _steady() -> float:
    """Seconds on a clock that nobody sets; on Linux it goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
