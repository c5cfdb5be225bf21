"""The mailbox between controller, Tune trials and lanes: which trial waits, which lane has which, what came back.

Plain asyncio, so that it is tested without Ray; on a cluster it is an actor without CPUs on the controller's node.
It holds nothing that a restart could not rebuild: the study folder has the truth.

A lane that loses its worker gives its trial back. The trial goes to the front of the queue, and whichever lane takes it
goes on from the trial's checkpoint; after `attempts` lost workers it is recorded as failed.

Lanes are called when trials wait for them, and an idle one is sent home when there are more lanes than trials. So there
are always as many lanes called as trials unfinished, or all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from trainer.storage import run_folder
from trainer.training.attempts import end_open, lost
from trainer.training.result import Cost, Row, RunResult, Stop, write_atomic
from trainer.training.shared import SharedRun

if TYPE_CHECKING:  # trainer.worker loads torch, which a mailbox has no use for
    from trainer.worker import Job

_LOST_AT_REST = 3
"""Workers that a lane may lose in a row without taking a trial before it counts as unable to start."""
_VERDICT_S = 5.0
"""Longest time that a worker waits for the controller to look at a row; a later verdict comes with the next row."""

logger = logging.getLogger(__name__)


class Message(TypedDict):
    """One event for the controller.

    A `row`, a result (`done`), a lane that cannot start (`broken`), or what makes all going on useless (`halt`).
    """

    kind: str
    trial: str
    content: dict[str, Any]


@dataclass
class _Entry:
    job: Job
    lost: int = 0
    taken_at: float = 0.0
    rows: list[Row] = field(default_factory=list)
    stop: Stop | None = None
    result: dict[str, Any] | None = None


class Exchange:
    """Queue and mailbox; every `wait_s` is the longest time that a call blocks.

    Args:
        attempts: workers that a trial may lose.
        lanes: names of the lanes, none of which has been started.
        idle_s: seconds without a trial after which a lane is sent home.
    """

    def __init__(self, attempts: int, lanes: Iterable[str] = (), idle_s: float = math.inf) -> None:
        self._attempts = attempts
        self._idle_s = idle_s
        self._home = list(lanes)
        """Lanes that are not called."""
        self._called: set[str] = set()
        self._idle_since: dict[str, float] = {}
        self._entries: dict[str, _Entry] = {}
        self._queue: deque[str] = deque()
        self._held: dict[str, tuple[str, str]] = {}  # lane -> worker, trial
        self._at_rest: Counter[str] = Counter()
        self._controllers: dict[str, Any] = {}
        self._messages: list[Message] = []
        self._told = self._judged = 0
        """Messages that the controller has got, and those that it has dealt with: it asks for more only then."""
        self._closed = False
        self._changed = asyncio.Condition()

    # ---- the controller and the Tune trials

    async def submit(self, job: Job) -> list[str]:
        """Queue a trial unless it is known; the lanes that have to be started for it."""
        if job["id"] in self._entries:
            return []
        self._entries[job["id"]] = _Entry(job)
        self._queue.append(job["id"])
        await self._notify()
        called = []
        while self._home and len(self._called) < self._unfinished():
            called.append(self._home.pop(0))
            self._called.add(called[-1])
        return called

    async def messages(self, wait_s: float) -> list[Message]:
        """Everything since the last call; there is one reader, the controller."""
        self._judged = self._told
        await self._notify()
        await self._until(lambda: bool(self._messages), wait_s)
        messages, self._messages = self._messages, []
        self._told += len(messages)
        return messages

    async def follow(self, trial: str, seen: int, wait_s: float) -> tuple[list[Row], bool]:
        """Rows of a trial after the first `seen`, and whether it has ended or been given up."""
        entry = self._entries[trial]

        def over() -> bool:
            return self._closed or entry.result is not None

        await self._until(lambda: over() or len(entry.rows) > seen, wait_s)
        return entry.rows[seen:], over()

    async def stop(self, trial: str, stop: Stop) -> None:
        """Answer a trial's last row, or its next one, by an order to end."""
        entry = self._entries[trial]
        entry.stop = entry.stop or stop
        await self._notify()

    async def close(self) -> list[str]:
        """Send idle lanes home and end all following. Returns the lanes that still hold a trial."""
        self._closed = True
        await self._notify()
        return sorted(self._held)

    async def controllers(self) -> list[Any]:
        """Actor handles of the lanes' Ray Train controllers, as far as they have started."""
        return list(self._controllers.values())

    # ---- the lanes

    async def started(self, lane: str, controller: Any) -> None:
        """A lane's Ray Train run has begun, or begun anew; `controller` is the handle that ends it."""
        self._controllers[lane] = controller

    async def take(self, lane: str, worker: str, wait_s: float) -> dict[str, Any]:
        """The next job for a lane: `{"closed": bool, "job": Job | None}`; neither means ask again."""
        if lane in self._held:
            await self.lost(lane, "it started anew")
        idle_since = self._idle_since.setdefault(lane, time.monotonic())
        left_s = max(idle_since + self._idle_s - time.monotonic(), 0)
        await self._until(lambda: self._closed or bool(self._queue), min(wait_s, left_s))
        if self._closed or not self._queue:
            return {"closed": self._closed or self._sent_home(lane), "job": None}
        self._idle_since.pop(lane, None)
        trial = self._queue.popleft()
        entry = self._entries[trial]
        entry.taken_at = time.time()
        self._held[lane] = (worker, trial)
        self._at_rest[lane] = 0
        return {"closed": False, "job": {**entry.job, "attempt": entry.lost + 1}}

    async def row(self, trial: str, row: Row) -> Stop | None:
        """A trial evaluated its model. Returns whether it has to end, once the controller has looked at the row."""
        entry = self._entries[trial]
        if not entry.rows or entry.rows[-1]["epoch"] < row["epoch"]:  # a run that goes on repeats its last row
            entry.rows.append(row)
        number = self._told + len(self._messages) + 1
        await self._tell("row", trial, dict(row))
        if entry.job["stoppable"]:
            await self._until(lambda: self._closed or entry.stop is not None or self._judged >= number, _VERDICT_S)
        return entry.stop

    async def done(self, trial: str, worker: str, result: dict[str, Any]) -> None:
        """A worker has written a trial's result. The first result of a trial counts."""
        for lane in [lane for lane, held in self._held.items() if held == (worker, trial)]:
            del self._held[lane]
        if self._entries[trial].result is None:
            self._entries[trial].result = result
            await self._tell("done", trial, result)

    async def halt(self, reason: str) -> None:
        """No trial can go on, for lack of space; those under way keep their checkpoints."""
        await self._tell("halt", "", {"reason": reason})

    async def lost(self, lane: str, reason: str) -> None:
        """A lane's worker is gone; what it held is finished, given back or given up."""
        worker, trial = self._held.pop(lane, ("", ""))
        if not trial:
            self._at_rest[lane] += 1
            if self._at_rest[lane] >= _LOST_AT_REST and not self._closed:
                await self._tell("broken", "", {"lane": lane, "reason": reason})
            return
        entry = self._entries[trial]
        entry.lost += 1
        end_open(Path(entry.job["folder"]), reason, time.time())
        logger.warning("%s lost the worker of %s (%d of %d): %s", lane, trial, entry.lost, self._attempts, reason)
        # In a thread: shared storage may take its time, and the others go on meanwhile.
        result = await asyncio.to_thread(_outcome, entry, worker, reason, self._attempts)
        if result is not None:
            await self.done(trial, worker, result.model_dump(mode="json"))
        else:
            self._queue.appendleft(trial)
            await self._notify()

    # ----

    def _unfinished(self) -> int:
        return sum(entry.result is None for entry in self._entries.values())

    def _sent_home(self, lane: str) -> bool:
        """Whether an idle lane has been idle for long and is not needed; it is not counted on any more then."""
        if time.monotonic() - self._idle_since.get(lane, math.inf) < self._idle_s:
            return False
        del self._idle_since[lane]
        if lane in self._called:
            if len(self._called) <= self._unfinished():
                return False
            self._called.remove(lane)
            self._home.append(lane)
        return True

    async def _tell(self, kind: str, trial: str, content: dict[str, Any]) -> None:
        self._messages.append({"kind": kind, "trial": trial, "content": content})
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, ready: Callable[[], bool], wait_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(ready)


def _outcome(entry: _Entry, worker: str, reason: str, attempts: int) -> RunResult | None:
    """How a trial without a worker ends, or None if it shall be tried again."""
    job = entry.job
    folder = run_folder(job["folder"], job["url"], job["config"])
    written = _written(job, folder)
    if written is not None:  # the worker died after its work
        return written
    stacks, limit = folder / "stacks.txt", job["time_limit_s"]
    # The stacks of a worker on another node stay there, but not how long it took.
    if (stacks.exists() and stacks.stat().st_size) or (job["url"] and time.time() - entry.taken_at >= limit):
        return _record(entry, worker, "timed_out", f"ran longer than {limit:g} s; what it was doing: {stacks}")
    if entry.lost >= attempts:
        return _record(entry, worker, "failed", f"its worker died {entry.lost} times (last: {reason})")
    return None


def _written(job: Job, folder: Path) -> RunResult | None:
    """The result that a worker has left for all to see."""
    if job["url"] is not None:
        return SharedRun(job["url"], folder).result()
    file = folder / "result.json"
    return RunResult.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None


def _record(entry: _Entry, worker: str, status: Any, reason: str) -> RunResult:
    now = time.time()
    result = RunResult(
        status=status,
        reason=reason,
        curve=entry.rows,
        worker=worker,
        attempts=entry.lost,
        lost=lost(Path(entry.job["folder"])),
        cost=Cost(wall_s=now - entry.taken_at, started_at=entry.taken_at, ended_at=now),
    )
    job = entry.job
    folder = run_folder(job["folder"], job["url"], job["config"])
    write_atomic(folder / "result.json", result.model_dump_json(indent=2))
    return result if job["url"] is None else SharedRun(job["url"], folder).publish_result(result)
