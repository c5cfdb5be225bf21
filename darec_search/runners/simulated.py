"""A clock and a function instead of training: the controller's tests and benchmarks take no wall time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

from darec_search.runners.base import DoneEvent, Event, Runner
from darec_search.study import Study
from darec_search.trial import TrialSpec
from trainer.training.result import Cost, RunResult, write_atomic

Outcome = tuple[float, RunResult]
"""Seconds that a trial takes, and how it ends; the runner fills in the times."""


class SimulatedRunner(Runner):
    """Results come in the order in which real trials of such durations would end.

    Args:
        study: where results are written.
        outcome: duration and result of a trial.
        slots: trials at a time.
        start: first reading of the clock; a resumed study goes on after its last result.
    """

    in_process = True  # thinking takes no simulated time

    def __init__(
        self, study: Study, outcome: Callable[[TrialSpec], Outcome], slots: int = 1, start: float = 0.0
    ) -> None:
        self.slots = slots
        self.now = max([start, *(trial.result.cost.ended_at for trial in study.trials() if trial.result)])
        self._study = study
        self._outcome = outcome
        self._queue: deque[TrialSpec] = deque()
        self._running: list[tuple[float, int, int, float, TrialSpec, RunResult]] = []
        self._started = 0

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial; it starts now if a slot is free."""
        self._queue.append(spec)
        self._fill()

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Move the clock to the next end of a trial; `timeout` is not needed, since nothing blocks."""
        if not self._running:
            return []
        ended_at, slot, _, started_at, spec, result = heapq.heappop(self._running)
        self.now = ended_at
        cost = Cost(wall_s=ended_at - started_at, started_at=started_at, first_step_at=started_at, ended_at=ended_at)
        result = result.model_copy(update={"cost": cost, "worker": f"slot-{slot}"})
        write_atomic(self._study.trial_folder(spec.id) / "result.json", result.model_dump_json())
        self._fill()
        return [DoneEvent(spec.id, result)]

    def close(self) -> None:
        """Give up what is under way."""
        self._queue.clear()
        self._running.clear()

    def _fill(self) -> None:
        while self._queue and len(self._running) < self.slots:
            spec = self._queue.popleft()
            seconds, result = self._outcome(spec)
            slot = min(set(range(self.slots)) - {running[1] for running in self._running})
            heapq.heappush(self._running, (self.now + seconds, slot, self._started, self.now, spec, result))
            self._started += 1
