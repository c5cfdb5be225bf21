"""Trials in this process, one at a time: no Ray, easy to debug.

A training is a generator that goes on when `wait` is called, so rows come as they are made, and `stop` takes effect at
the row that it answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from darec_search.runners.base import DoneEvent, Event, RowEvent, Runner
from darec_search.study import Study
from darec_search.trial import TrialSpec
from trainer.training.result import Row, RunResult, Stop
from trainer.training.run import run_by_epochs
from trainer.training.warm import Warm


class LocalRunner(Runner):
    """Trains inside `wait`."""

    slots = 1
    in_process = True  # torch has one random state and one number of threads for the whole process

    def __init__(self, study: Study) -> None:
        self._study = study
        self._queue: deque[TrialSpec] = deque()
        self._running: tuple[str, Generator[Row, Stop | None, RunResult]] | None = None
        self._stop: Stop | None = None
        self._warm = Warm()

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial."""
        running = {self._running[0]} if self._running else set()
        if spec.id not in running | {queued.id for queued in self._queue}:
            self._queue.append(spec)

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Train to the next row or the end of the trial under way; `timeout` cannot interrupt it."""
        if self._running is None:
            if not self._queue:
                return []
            spec = self._queue.popleft()
            self._running = (
                spec.id,
                run_by_epochs(
                    self._study.run_config(spec),
                    self._study.trial_folder(spec.id),
                    warm=self._warm,
                    worker="local",
                    keep_model=spec.keeps_model,
                    held=self._study.config.resources.held,
                    url=self._study.url(f"trials/{spec.id}"),
                ),
            )
        trial_id, training = self._running
        stop, self._stop = self._stop, None
        try:
            return [RowEvent(trial_id, training.send(stop))]
        except StopIteration as ended:
            self._running = None
            return [DoneEvent(trial_id, ended.value)]

    def stop(self, trial_id: str, stop: Stop) -> None:
        """End the trial under way; at the row that it reported last."""
        if self._running is not None and self._running[0] == trial_id:
            self._stop = stop

    def close(self) -> None:
        """Forget what is queued, and leave what is under way to its checkpoint."""
        self._queue.clear()
        if self._running is not None:
            self._running[1].close()
            self._running = None
