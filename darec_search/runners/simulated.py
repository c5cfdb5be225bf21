"""A clock and a function instead of training: the controller's tests and benchmarks take no wall time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from darec_search.runners.base import DoneEvent, Event, RowEvent, Runner
from darec_search.study import Study
from darec_search.trial import TrialSpec
from trainer.training.result import Cost, Row, RunResult, Stop, write_atomic

Outcome = tuple[float, RunResult]
"""Seconds that a trial takes, and how it ends; the runner fills in the times. Rows of its curve that have `seconds` are
reported so long after its start."""


@dataclass
class _Running:
    spec: TrialSpec
    seconds: float
    result: RunResult
    slot: int
    order: int
    started_at: float
    rows: deque[Row] = field(init=False)
    """Those still to come."""
    stop: Stop | None = None

    def __post_init__(self) -> None:
        self.rows = deque(row for row in self.result.curve if row.get("seconds", self.seconds + 1) <= self.seconds)

    @property
    def next_at(self) -> float:
        return self.started_at + (self.rows[0]["seconds"] if self.rows else self.seconds)


class SimulatedRunner(Runner):
    """Rows and results come in the order in which those of real trials of such durations would.

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
        self._queue: deque[tuple[TrialSpec, float]] = deque()
        """Trials with the time of their submission."""
        self._running: list[_Running] = []
        self._started = 0

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial; it starts now if a slot is free."""
        self._queue.append((spec, self.clock()))
        self._fill()

    def clock(self) -> float:
        """What time it is for the one who submits: that of the last event, as thinking takes no time."""
        return self.now

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Move the clock to the next row or end of a trial; `timeout` is not needed, since nothing blocks."""
        if not self._running:
            return []
        stopped = [running for running in self._running if running.stop]
        trial = stopped[0] if stopped else min(self._running, key=lambda r: (r.next_at, r.slot, r.order))
        if not stopped:
            self.now = trial.next_at
            if trial.rows:
                return [RowEvent(trial.spec.id, trial.rows.popleft())]
        self._running.remove(trial)
        result = self._end(trial)
        self._fill()
        return [DoneEvent(trial.spec.id, result)]

    def stop(self, trial_id: str, stop: Stop) -> None:
        """End a running trial now, if a row of it is still to come."""
        for running in self._running:
            if running.spec.id == trial_id and running.rows:
                running.stop = stop

    def close(self) -> None:
        """Give up what is under way."""
        self._queue.clear()
        self._running.clear()

    def _end(self, trial: _Running) -> RunResult:
        """Write the result of a trial that ends now."""
        cost = Cost(
            wall_s=self.now - trial.started_at,
            started_at=trial.started_at,
            first_step_at=trial.started_at,
            ended_at=self.now,
        )
        result = trial.result
        if trial.stop is not None:
            curve = result.curve[: len(result.curve) - len(trial.rows)]
            best = max(curve, key=lambda row: row["mrr"])
            pruned = {"status": "pruned", "reason": trial.stop.reason, "forecast": trial.stop.forecast}
            metrics = {name: best[name] for name in result.metrics}
            result = result.model_copy(update={**pruned, "curve": curve, "metrics": metrics})
        result = result.model_copy(update={"cost": cost, "worker": f"slot-{trial.slot}"})
        write_atomic(self._study.trial_folder(trial.spec.id) / "result.json", result.model_dump_json())
        return result

    def _fill(self) -> None:
        while self._queue and len(self._running) < self.slots:
            spec, since = self._queue.popleft()
            seconds, result = self._outcome(spec)
            slot = min(set(range(self.slots)) - {running.slot for running in self._running})
            self._running.append(_Running(spec, seconds, result, slot, self._started, max(self.now, since)))
            self._started += 1
