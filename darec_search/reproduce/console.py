"""What a person sees of a reproduction."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from darec_search.reproduce.chains import Job
from darec_search.reproduce.executors import Done
from darec_search.reproduce.price import Price
from darec_search.reproduce.setup import Setup
from trainer.training.probe import Range


class ConsoleObserver:
    """A line a training, and a bar on a terminal.

    Args:
        console: where to write.
        trainings: how many there are.
        done: how many of them were done before.
        changed: is called when a training begins or has ended.
    """

    def __init__(
        self, console: Console, trainings: int, done: int = 0, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._console, self._changed = console, changed
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=trainings, completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begins(self, setup: Setup, job: Job) -> None:
        """Name it beside the bar."""
        self._progress.update(self._task, description=f"{setup.name} {job.training.name}")
        self._changed()

    def ended(self, setup: Setup, job: Job, done: Done) -> None:
        """One line, and a step of the bar."""
        result = done.result
        said = f"validation MRR {result.metrics['mrr']:.4f} in epoch {result.best_epoch}, {result.cost.wall_s:.1f} s"
        outcome = said if result.status == "finished" else str(result.reason)
        line = f"{setup.name} {job.training.name}: {result.status}: {outcome}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._progress.advance(self._task)
        self._changed()


def print_price(console: Console, found: Price) -> None:
    """What it would take, by dataset and method."""
    table = Table(title=f"What it would take, from real steps on this machine ({found.device})", title_justify="left")
    for head in ("", "trials", "seconds each", "trainings", "seconds each", "hours"):
        table.add_column(head, justify="right" if head else "left", overflow="fold")
    for part in found.parts:
        counts = (str(part.trials), _range(part.trial_s), str(part.trainings), _range(part.training_s))
        table.add_row(f"{part.dataset}\n{part.method}", *counts, _range(part.hours))
    table.add_section()
    trials, trainings = (sum(getattr(part, name) for part in found.parts) for name in ("trials", "trainings"))
    table.add_row("all", str(trials), "", str(trainings), "", _range(found.hours))
    console.print(table)
    money = "" if found.cost is None else f"; cost {_range(found.cost, ' ')}"
    said = f"{found.lanes} at a time: {_range(found.wall_hours, ' ')} hours{money}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def _range(one: Range, between: str = "\n") -> str:
    return f"{_digits(one.middle)}{between}({_digits(one.low)}–{_digits(one.high)})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
