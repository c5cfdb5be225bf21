"""Trials in this process, one at a time: no Ray, easy to debug."""

from __future__ import annotations

from collections import deque

from darec_search.runners.base import DoneEvent, Event, RowEvent, Runner
from darec_search.study import Study
from darec_search.trial import TrialSpec
from trainer.training.run import run
from trainer.training.warm import Warm


class LocalRunner(Runner):
    """Trains inside `wait`."""

    slots = 1
    in_process = True  # torch has one random state and one number of threads for the whole process

    def __init__(self, study: Study) -> None:
        self._study = study
        self._queue: deque[TrialSpec] = deque()
        self._warm = Warm()

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial."""
        if spec.id not in {queued.id for queued in self._queue}:
            self._queue.append(spec)

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Train the oldest queued trial to its end; `timeout` cannot interrupt it."""
        if not self._queue:
            return []
        spec = self._queue.popleft()
        events: list[Event] = []
        result = run(
            self._study.run_config(spec),
            self._study.trial_folder(spec.id),
            warm=self._warm,
            on_row=lambda row: events.append(RowEvent(spec.id, row)),
            worker="local",
            keep_model=spec.keeps_model,
        )
        return [*events, DoneEvent(spec.id, result)]

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()
