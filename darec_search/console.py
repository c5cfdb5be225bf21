"""What a person sees on a terminal: progress while a study runs, tables at its end."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from darec_search.budget import ledger
from darec_search.controller import search_fidelity
from darec_search.credentials import RedactingFilter
from darec_search.runners.base import DoneEvent, Event
from darec_search.study import Study, Trial, best_trial
from darec_search.variants import FIXED
from trainer.architecture import FIXED_ARMS, Architecture
from trainer.training.result import RunResult

if TYPE_CHECKING:
    from darec_search.estimate import Estimate
    from darec_search.pipeline import StudyResult
    from trainer.training.probe import Range

COLUMNS = ("mrr", "recall@10", "ndcg@10")
_CLOCK = "%Y-%m-%d %H:%M:%S"
NAMES = {"mrr": "MRR", "recall@10": "Recall@10", "ndcg@10": "NDCG@10"}


def set_up_logging(console: Console, verbose: bool) -> None:
    """Our own log lines through rich; other libraries' from warnings up. In a file each is a line with its time."""
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", _CLOCK))
    handler.addFilter(RedactingFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("darec_search", "trainer"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)
    # It warns of every retry; what counts is the error at the end. It reads its level when it is imported.
    os.environ.setdefault("HF_HUB_VERBOSITY", "warning" if verbose else "error")


class ConsoleObserver:
    """Shows a study's progress: on a terminal as a live bar, elsewhere as one line a fact, with its time.

    Args:
        console: where to write.
        slots: runs at a time, for the estimate of the time left.
    """

    def __init__(self, console: Console, slots: int) -> None:
        self._console = console
        self._slots = slots
        self._live = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[best]}"),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not self._live,
        )
        self._task: Any = None
        self._runs = self._done = 0
        self._seconds: list[float] = []
        self._best = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, text: str, runs: int = 0, done: Sequence[RunResult] = ()) -> None:
        """A new part begins, of which an earlier start has done some."""
        self._runs, self._done, self._best = runs, 0, 0.0
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(text, total=runs or None, best="", left="")
        for result in done:
            self._count(result)
        left = f", {self._done} done before" if done else ""
        self._say(f"{text}{f': {runs} runs{left}' if runs else ''}")
        self._show()

    def event(self, event: Event) -> None:
        """A run has its result; rows only move the spinner."""
        if not isinstance(event, DoneEvent):
            return
        result = event.result
        self._count(result)
        if result.objective is not None:
            outcome = f"validation MRR {result.objective:.4f}"
        else:
            outcome = f"{result.status}: {result.reason}"
        self._say(f"  {self._done}/{self._runs} {event.trial_id} {outcome}, {result.cost.wall_s:.1f} s")
        self._show()

    def _count(self, result: RunResult) -> None:
        self._done = min(self._done + 1, self._runs)
        self._seconds.append(result.cost.wall_s)
        self._best = max(self._best, result.objective or 0.0)

    def _show(self) -> None:
        waves = -(-(self._runs - self._done) // self._slots)
        seconds = statistics.fmean(self._seconds) * waves if self._seconds else 0.0
        self._progress.update(
            self._task,
            completed=self._done,
            best=f"best MRR {self._best:.4f}" if self._best else "",
            left=f"about {_duration(seconds)} left" if seconds else "",
        )

    def _say(self, text: str) -> None:
        if not self._live:
            line = f"{time.strftime(_CLOCK)} {text}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_result(console: Console, result: StudyResult) -> None:
    """What won, by how much, where everything lies and what to do next."""
    study, best = result.study, result.promotion.best
    console.print()
    console.print(f"Winner: [bold]{Architecture(best.bits).text}[/] ({best.arm})  {_weights(best.weights)}")
    console.print(f"Why: {result.promotion.reason}.", highlight=False)
    console.print(comparison_table(result.comparison, study.config.data.exclude_seen))
    console.print(verdict(result.comparison, result.promotion.winner), highlight=False)
    console.print(f"Spent: {ledger(study).text}.", highlight=False, markup=False)
    for text in result.promotion.cut:
        console.print(f"Cut: {text}.", highlight=False, markup=False)
    if study.config.resources.runner == "ray":
        _print_lane_gaps(console, study)
    console.print()
    rows = {
        "model": str(result.model),
        "report": str(result.report),
        "study": study.config.location,
        "MLflow": result.tracking.location if result.tracking else f"darec-search sync {study.config.location}",
    }
    for name, value in rows.items():
        console.print(f"{name:>8}  {value}", highlight=False, markup=False, soft_wrap=True)
    following = f"darec-search recommend {result.model} --history ID,ID,…"
    console.print(f"{'next':>8}  {following}", highlight=False, markup=False, soft_wrap=True)


def _print_lane_gaps(console: Console, study: Study) -> None:
    from darec_search.runners.lanes import lane_gaps  # imports Ray, which takes seconds

    gaps = lane_gaps(study.trials())
    if gaps:
        text = f"Between two trials on a warm lane: {statistics.median(gaps):.2f} s (median), {max(gaps):.2f} s (most)."
        console.print(text, highlight=False)


def print_estimate(console: Console, found: Estimate) -> None:
    """What a study would take and cost, each figure above its range."""
    probe, priced = found.probe, found.price is not None
    table = Table(title="What it would take, from real steps on this machine", title_justify="left")
    for name in ("", "trainings", "each", "wall time", found.unit, *(["cost"] if priced else [])):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for stage in found.stages:
        cost = [_range(stage.hours, found.price, "\n")] if found.price is not None else []
        taken = (_time(stage.seconds), _time(stage.wall_hours, 3600), _range(stage.hours, between="\n"))
        table.add_row(stage.name, _count(*stage.trainings), *taken, *cost)
    table.add_section()
    count = _count(*(sum(stage.trainings[end] for stage in found.stages) for end in (0, 1)))
    cost = [_range(found.cost, between=f" {found.currency}\n")] if found.cost is not None else []
    table.add_row("all", count, "", _time(found.wall_hours, 3600), _range(found.hours, between="\n"), *cost)
    console.print(table)
    memory = "GiB of a GPU" if probe.device.startswith("cuda") else "GiB"
    rows = {
        "step": f"{_range(probe.step_s)} s on {probe.device}, {probe.threads} thread(s)",
        "evaluation": f"{probe.evaluation_s:.3g} s, by {probe.users_timed:,} users",
        "memory": f"{_range(probe.memory_bytes, 2**-30)} {memory} a worker",
        "disk": f"{_range(found.disk_bytes, 2**-20)} MiB for checkpoints, results and models",
        **({} if found.limit is None else {"budget": _against(found, found.limit)}),
    }
    for name, value in rows.items():
        console.print(f"{name:>11}  {value}", highlight=False, markup=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"  {note}", highlight=False, markup=False, soft_wrap=True)


def _against(found: Estimate, limit: float) -> str:
    said = f"budget.hours, {limit:g} {found.unit},"
    if limit >= found.hours.high:
        return f"{said} is enough"
    return f"{said} {'may end' if limit >= found.hours.low else 'ends'} the search or the re-tests early"


def _range(one: Range, factor: float = 1.0, between: str = " ") -> str:
    """`12 (10–15)`."""
    low, middle, high = (_digits(figure * factor) for figure in (one.low, one.middle, one.high))
    return middle if low == high else f"{middle}{between}({low}–{high})"


def _time(one: Range, factor: float = 1.0) -> str:
    """The same of a time in seconds, in seconds, minutes or hours."""
    size, name = next(
        (s, n) for s, n in ((3600, "h"), (60, "min"), (1, "s")) if one.middle * factor >= 1.5 * s or s == 1
    )
    return _range(one, factor / size, f" {name}\n") if one.low < one.high else f"{_range(one, factor / size)} {name}"


def _digits(figure: float) -> str:
    """Two digits, never as a power of ten."""
    return f"{figure:,.0f}" if figure >= 10 else f"{float(f'{figure:.2g}'):.10g}"


def _count(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest}–{most}"


def comparison_table(rows: Sequence[Mapping[str, Any]], exclude_seen: bool) -> Table:
    """The final table on the test split."""
    ranked = "all items ranked but those of the history" if exclude_seen else "all items ranked, none masked"
    table = Table(title=f"Test split, {ranked}", title_justify="left")
    table.add_column("model")
    for name in COLUMNS:
        table.add_column(NAMES[name], justify="right")
    table.add_column("p against winner", justify="right")
    table.add_column("")
    for row in rows:
        p_value = row.get("p_value")
        shown = "" if p_value is None else f"{p_value:.2g}"
        table.add_row(row["name"], *(f"{row[name]:.4f}" for name in COLUMNS), shown, row.get("note", ""))
    return table


def verdict(rows: Sequence[Mapping[str, Any]], arm: str) -> str:
    """One plain sentence on how the winner compares.

    Args:
        rows: the final table.
        arm: the winner's arm; it is among the other rows where its design was trained without the winner's prior.
    """
    winner = next(row for row in rows if row["name"] == "winner")
    design = next((row for row in rows if row["name"] == arm), None)
    arms = [row for row in rows if row["name"] in FIXED_ARMS and row["name"] != arm]
    references = [row for row in rows if row["name"] not in (*FIXED_ARMS, "winner", arm)]
    parts = []
    if arm in FIXED:
        parts.append(f"the fixed arm {arm}, since the search found nothing better")
    if design is not None:
        parts.append(f"{winner['mrr'] / design['mrr'] - 1:+.1%} test MRR by the prior from counts")
    # A winner with a prior says nothing of architectures.
    alike = winner if design is None and not winner.get("prior") else design
    if arms and alike is not None:
        rival = max(arms, key=lambda row: row["mrr"])
        which = "the better fixed arm" if len(arms) > 1 else "the other fixed arm"
        if len(arms) == 1 and arm not in FIXED:
            which = "the only fixed arm that finished"
        gain = alike["mrr"] / rival["mrr"] - 1
        without = "" if design is None else "without it "
        parts.append(f"{without}{gain:+.1%} test MRR against {rival['name']}, {which}")
    better = [row["name"] for row in references if row["mrr"] > winner["mrr"]]
    if better:
        ranks = "ranks" if len(better) == 1 else "rank"
        parts.append(f"{' and '.join(better)} (no training) still {ranks} better: it is not worth its cost yet")
    else:
        parts.append("better than both references without training")
    return "The winner: " + "; ".join(parts) + "."


def status_document(study: Study) -> dict[str, Any]:
    """`status --json`: trials, the best point so far, and what was spent."""
    trials = study.trials()
    results = [result for result in (*(trial.result for trial in trials), study.final_result()) if result]
    return {
        "study": study.config.name,
        "folder": study.config.location,
        "trials": [
            {
                "id": trial.spec.id,
                "status": trial.status,
                "stage": trial.spec.stage,
                "bits": list(trial.spec.bits),
                "weights": trial.spec.weights,
                "seed": trial.spec.seed,
                "fidelity": trial.spec.fidelity.model_dump(),
                "arm": trial.spec.arm,
                "objective": trial.objective,
            }
            for trial in trials
        ],
        "best": _best([trial for trial in trials if trial.spec.fidelity == search_fidelity(study)]),
        "gpu_hours": sum(result.cost.gpu_s for result in results) / 3600,
        "cpu_hours": sum(result.cost.cpu_s for result in results) / 3600,
        "spent": ledger(study).document(),
    }


def status_table(study: Study) -> Table:
    """The trials of a study."""
    table = Table(title=escape(f"{study.config.name}: {study.config.location}"), title_justify="left")
    table.caption, table.caption_justify = escape(f"spent: {ledger(study).text}"), "left"
    for name in ("#", "trial", "stage", "architecture", "λ", "seed", "status", "MRR", "s"):
        table.add_column(name, justify="right" if name in ("#", "seed", "MRR", "s") else "left")
    for trial in study.trials():
        spec = trial.spec
        table.add_row(
            str(spec.number),
            spec.id,
            f"{spec.stage} {spec.arm or ''}".strip(),
            Architecture(spec.bits).text,
            _weights(spec.weights),
            str(spec.seed),
            trial.status,
            "" if trial.objective is None else f"{trial.objective:.4f}",
            "" if trial.result is None else f"{trial.result.cost.wall_s:.1f}",
        )
    return table


def _best(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The luckiest trial's point: mean over its seeds, a 95 % interval where it has several."""
    best = best_trial(trials)
    if best is None:
        return None
    same = [t.objective for t in trials if t.spec.point == best.spec.point and t.objective is not None]
    mean = statistics.fmean(same)
    half = 1.96 * statistics.stdev(same) / len(same) ** 0.5 if len(same) > 1 else None
    interval = None if half is None else [mean - half, mean + half]
    return {"bits": list(best.spec.bits), "weights": best.spec.weights, "mean": mean, "interval": interval}


def _weights(weights: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:g}" for name, value in weights.items())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
