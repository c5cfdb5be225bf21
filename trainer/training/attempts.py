"""How long each attempt at a run took, in `attempts.jsonl` of its folder, whatever became of its process.

One line when an attempt begins, with what it holds, and one when it ends, with the reason if it is cut short; both are
appended and never changed. While it runs, `alive.json` holds its last sign of life, renewed every few seconds. An
attempt whose process was killed gets its end from whoever sees that first: the exchange that lost the worker, at once;
else the next attempt, by the last sign of life, which is `SIGN_OF_LIFE_S` too early at most.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.training.result import write_atomic

ATTEMPTS = "attempts.jsonl"
_ALIVE = "alive.json"
SIGN_OF_LIFE_S = 10.0
KILLED = "its process was killed"
_STOPPED = "it was stopped"


@dataclass(frozen=True)
class Held:
    """What a run holds while it runs, over all its workers."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run. Times are Unix seconds."""

    id: str
    worker: str | None
    started_at: float
    ended_at: float
    """Of one that has no end yet: its last sign of life."""
    held: Held
    over: bool
    cut: str | None = None
    """Why it ended before its time."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return max(0.0, self.ended_at - self.started_at)


@contextmanager
def attempt(folder: Path, worker: str | None, held: Held, every_s: float = SIGN_OF_LIFE_S) -> Iterator[None]:
    """Record the block as an attempt at the run in a folder.

    Args:
        folder: the run's own.
        worker: who runs it.
        held: what it holds.
        every_s: seconds between two signs of life.
    """
    file = folder / ATTEMPTS
    end_open(folder, KILLED)
    name = uuid.uuid4().hex[:8]
    started_at, began = time.time(), time.monotonic()
    _append(file, {"attempt": name, "started_at": started_at, "worker": worker, "cpus": held.cpus, "gpus": held.gpus})

    def now() -> float:
        """By the clock that nobody sets: what is spent stays right if the wall clock jumps."""
        return started_at + time.monotonic() - began

    over = threading.Event()
    thread = threading.Thread(target=_live, args=(folder, name, every_s, now, over), name="sign-of-life", daemon=True)
    thread.start()
    cut: str | None = _STOPPED
    try:
        yield
        cut = None
    except Exception as error:
        cut = " ".join(str(error).split())[:300] or type(error).__name__
        raise
    finally:
        over.set()
        thread.join(every_s)
        _append(file, {"attempt": name, "ended_at": now(), "cut": cut})
        (folder / _ALIVE).unlink(missing_ok=True)


def end_open(folder: Path, reason: str, at: float | None = None) -> None:
    """Give the newest attempt an end if it has none.

    Args:
        folder: the run's own.
        reason: why it ended.
        at: when; its last sign of life when absent.
    """
    found = recorded(folder)
    if found and not found[-1].over:
        newest = found[-1]
        _append(
            folder / ATTEMPTS, {"attempt": newest.id, "ended_at": newest.ended_at if at is None else at, "cut": reason}
        )


def take_over(folder: Path, other: Path) -> None:
    """Count the attempts of another machine, which has begun this run, before those that are here.

    Args:
        folder: the run's own, here.
        other: a copy of what the other machine left; its last attempt ended with its last sign of life.
    """
    end_open(other, KILLED)
    (other / _ALIVE).unlink(missing_ok=True)
    lines = [file.read_text(encoding="utf-8") for file in (other / ATTEMPTS, folder / ATTEMPTS) if file.exists()]
    if lines:
        write_atomic(folder / ATTEMPTS, "".join(lines))


def recorded(folder: Path) -> list[Attempt]:
    """All attempts at the run in a folder, oldest first; none where nothing is recorded.

    An attempt counts once, by its first end, however often its lines stand there; a line that a crash cut is left out.
    """
    try:
        lines = (folder / ATTEMPTS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return in_lines(lines, _last_sign(folder))


def in_lines(lines: Iterable[str], alive: Mapping[str, float]) -> list[Attempt]:
    """The attempts in lines of `attempts.jsonl`.

    Args:
        lines: the lines.
        alive: last sign of life by attempt.
    """
    found: dict[str, Attempt] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            name = str(row["attempt"])
            if "started_at" in row and name not in found:
                start, held = float(row["started_at"]), Held(float(row["cpus"]), float(row["gpus"]))
                last = max(start, alive.get(name, start))
                found[name] = Attempt(name, row["worker"], start, last, held, over=False)
            elif "ended_at" in row and name in found and not found[name].over:
                found[name] = replace(found[name], ended_at=float(row["ended_at"]), over=True, cut=row.get("cut"))
    return sorted(found.values(), key=lambda one: one.started_at)


def lost(folder: Path) -> tuple[str, ...]:
    """Why each attempt that was cut short was."""
    return tuple(one.cut for one in recorded(folder) if one.cut is not None)


def _append(file: Path, row: dict[str, object]) -> None:
    """Add a line; on a line of its own also after one that a crash cut."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as out:
        out.seek(0, os.SEEK_END)
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")
        out.write(json.dumps(row).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def _live(folder: Path, name: str, every_s: float, now: Callable[[], float], over: threading.Event) -> None:
    while not over.wait(every_s):
        with suppress(OSError):
            write_atomic(folder / _ALIVE, json.dumps({"attempt": name, "at": now()}))


def _last_sign(folder: Path) -> dict[str, float]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        sign = json.loads((folder / _ALIVE).read_text(encoding="utf-8"))
        return {str(sign["attempt"]): float(sign["at"])}
    return {}
