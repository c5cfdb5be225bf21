"""Where trainings run: in this process, one at a time, or as Ray tasks (`darec_search/runners/tasks.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from darec_search.reproduce.chains import Job
from darec_search.sweep import train_one
from trainer.threads import of_threads
from trainer.training.attempts import Held
from trainer.training.result import RunResult
from trainer.training.warm import Warm


@dataclass(frozen=True)
class Done:
    """A training that has ended."""

    key: str
    result: RunResult
    before: bool
    """An earlier start left it."""


class Executor(Protocol):
    """Trains jobs."""

    slots: int
    """Trainings at a time."""

    def start(self, job: Job) -> None:
        """Begin a training; at most `slots` are under way."""
        ...

    def wait(self) -> Done:
        """The next training that ends."""
        ...

    def close(self) -> None:
        """End what is under way; its checkpoints stay."""
        ...


class LocalExecutor:
    """Trains in this process.

    Args:
        threads: torch's, of a training.
        gpus: that a training holds, for the record.
    """

    slots = 1

    def __init__(self, threads: int, gpus: float = 0) -> None:
        self._held, self._warm = Held(threads, gpus), Warm()
        self._job: Job | None = None

    def start(self, job: Job) -> None:
        """Begin when it is waited for."""
        self._job = job

    def wait(self) -> Done:
        """Train it."""
        if self._job is None:
            raise RuntimeError("nothing is under way")
        job, self._job = self._job, None
        with of_threads(int(self._held.cpus)):
            return train(job, self._warm, self._held)

    def close(self) -> None:
        """Nothing is left."""


def train(job: Job, warm: Warm, held: Held) -> Done:
    """Train and measure what is not done of a job."""
    keep = job.split is not None
    result, before = train_one(job.training, job.split, warm, keep_model=keep, held=held)
    return Done(job.key, result, before)
