"""The contract of a runner: trials go in, rows and results come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from darec_search.trial import TrialSpec
from trainer.training.result import Row, RunResult, Stop


@dataclass(frozen=True)
class RowEvent:
    """A running trial evaluated its model."""

    trial_id: str
    row: Row


@dataclass(frozen=True)
class DoneEvent:
    """A trial has its result; `result.json` stands in its folder already."""

    trial_id: str
    result: RunResult


Event = RowEvent | DoneEvent


class Runner(ABC):
    """Runs the trials of one study.

    Life cycle: built with an open study; `submit` any number of requested trials, `wait` for what happens to them,
    `stop` what need not go on, `close` once. A trial that cannot be run still ends, with a result that says why; only
    what makes further trials pointless raises.
    """

    slots: int
    """Trials that run at the same time."""
    in_process: bool = False
    """Whether trials run inside `wait`: then a sampler's thinking has to end before, not beside it."""

    @abstractmethod
    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial. A trial that is queued or running already is not queued again."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> list[Event]:
        """What has happened since the last call, oldest first; blocks until something has.

        Args:
            timeout: seconds after which an empty list comes back; None waits as long as trials are under way.
        """

    @abstractmethod
    def stop(self, trial_id: str, stop: Stop) -> None:
        """End a trial with the evaluation last reported, or the next one where this comes too late.

        Its result is `pruned`, has its curve so far and comes as any other's; a trial that had nothing left to train
        is `finished`. A trial that is not under way is left alone.
        """

    @abstractmethod
    def close(self) -> None:
        """Release every process. Trials still under way are given up; they go on from their checkpoint next time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
