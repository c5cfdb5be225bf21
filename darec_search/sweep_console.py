"""What a person sees of a run file's trainings: a line an epoch, a bar on a terminal, tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from darec_search.sweep import Training
from trainer.training.result import Row, RunResult

_METRICS = {"mrr": "MRR", "recall@10": "R@10", "ndcg@10": "N@10"}


class SweepObserver:
    """Prints each evaluation and each result.

    Args:
        console: where to write.
        trainings: how many there are; with one alone its lines carry no name and there is no bar.
        changed: is called after each, since the folder holds more then.
    """

    def __init__(self, console: Console, trainings: int, changed: Callable[[], None] = lambda: None) -> None:
        self._console, self._changed = console, changed
        self._several = trainings > 1
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not (self._several and console.is_terminal))
        self._task = self._progress.add_task("", total=trainings)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begins(self, training: Training) -> None:
        """Name it beside the bar."""
        self._progress.update(self._task, description=training.name)
        self._changed()

    def row(self, training: Training, row: Row) -> None:
        """One line."""
        loss = f"loss {row['loss/total']:.4f}, " if "loss/total" in row else ""  # counted models have none
        text = f"epoch {row['epoch']:g}: {loss}validation MRR {row['mrr']:.4f}"
        self._say(training, f"{text}, {row['seconds']:.1f} s" if self._several else text)
        self._changed()

    def ended(self, training: Training, result: RunResult, before: bool) -> None:
        """One line, and a step of the bar."""
        if self._several:
            best = f"best validation MRR {result.metrics['mrr']:.4f} in epoch {result.best_epoch}"
            outcome = best if result.status == "finished" else str(result.reason)
            self._say(training, f"{result.status}{' before' if before else ''}: {outcome}")
        self._progress.advance(self._task)
        self._changed()

    def _say(self, training: Training, text: str) -> None:
        name = f"{training.name}: " if self._several else ""
        self._console.print(f"{name}{text}", markup=False, highlight=False, soft_wrap=True)


def print_results(console: Console, document: Mapping[str, Any]) -> None:
    """One table a split, then what is not finished."""
    rows = document["runs"]
    for split in ("validation", "test"):
        if any(row[split] for row in rows):
            console.print(_table(split, document))
    unfinished = sum(row["unfinished"] for row in rows)
    if unfinished:
        console.print(f"trainings that are not finished: {unfinished}; run again to go on", style="yellow")


def _table(split: str, document: Mapping[str, Any]) -> Table:
    tested = split == document["p_value_split"]
    against = f"p: paired t-test over users against {document['p_value_against']}" if tested else None
    table = Table(title=f"{split}, mean ± sd over seeds", caption=against, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("run", overflow="fold", min_width=12)
    columns = [*_METRICS.values(), *(["epoch", "train s"] if split == "validation" else ["eval s"])]
    for column in [*columns, "p"] if tested else columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in document["runs"]:
        cells = [_cell(row[split] and row[split][name]) for name in _METRICS]
        if split == "validation":
            cells += [",".join(map(str, row["best_epoch"])), _seconds(row["train_s"])]
        else:
            cells.append(_seconds(row["evaluation_s"]))
        if tested:
            cells.append("" if row["p_value"] is None else f"{row['p_value']:.2g}")
        table.add_row(row["name"], *cells)
    return table


def _cell(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return ""
    return f"{spread['mean']:.4f}" + ("" if spread["sd"] is None else f"±{spread['sd']:.4f}")


def _seconds(spread: Mapping[str, Any] | None) -> str:
    return "" if spread is None else f"{spread['mean']:.1f}"
