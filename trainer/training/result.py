"""What a training run hands back: written once, atomically, as `result.json`."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Literal

from pydantic import Field

from trainer.config import Section
from trainer.errors import no_space_told

Status = Literal["finished", "pruned", "failed", "diverged", "out_of_memory", "timed_out", "cancelled"]
Row = dict[str, float]
"""One evaluation: `epoch`, `step`, `seconds`, the mean losses since the last row, and `mrr`, `recall@10`, `ndcg@10`."""


class Cost(Section):
    """What a run spent. Times are Unix seconds."""

    wall_s: float = Field(0.0, description="Seconds from start to end, over all attempts.")
    cpu_s: float = Field(0.0, description="Processor seconds of the worker processes.")
    gpu_s: float = Field(0.0, description="GPU seconds held: wall seconds × GPUs.")
    started_at: float = Field(0.0, description="When a worker took the run.")
    first_step_at: float | None = Field(None, description="When the first optimiser step began.")
    ended_at: float = Field(0.0, description="When the result was written.")


class Forecast(Section):
    """What a run would have ended with, judged by its curve."""

    metric: str = Field(description="The metric in question, of the best evaluation by it.")
    value: float = Field(description="Its expected value.")
    stderr: float = Field(description="Its standard deviation.")


class Stop(Section):
    """Ends a run after the evaluation that it answers."""

    reason: str = Field(description="One sentence, for the result.")
    forecast: Forecast | None = Field(None, description="What the rest would have brought.")


class RunResult(Section):
    """The outcome of one training run; immutable once written."""

    status: Status
    metrics: dict[str, float] = Field(
        default_factory=dict,
        description="Validation metrics of the best checkpoint: mrr, recall@10, ndcg@10.",
    )
    best_epoch: int | None = Field(None, description="Epoch of the best validation MRR.")
    curve: list[Row] = Field(default_factory=list, description="One row an evaluation, oldest first.")
    forecast: Forecast | None = Field(None, description="Of a pruned run: what it was expected to end with.")
    cost: Cost = Field(default_factory=lambda: Cost())
    reason: str | None = Field(None, description="One sentence; present unless finished.")
    fingerprint: str | None = Field(None, description="SHA-256 fingerprint of the dataset.")
    backbone: str | None = Field(None, description="Folder or Hugging Face id of the frozen language model.")
    revision: str | None = Field(None, description="Commit of a Hugging Face id.")
    worker: str | None = Field(None, description="Who ran it: lane, process, node.")
    attempts: int = Field(1, description="Workers that it took.")
    lost: tuple[str, ...] = Field((), description="Why each earlier attempt ended before its time, oldest first.")

    @property
    def objective(self) -> float | None:
        """Validation MRR of a finished run, what a search maximises; None for any other status."""
        return self.metrics.get("mrr") if self.status == "finished" else None


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that readers and crashes see the old or the new content, never a part.

    Raises:
        NoSpace: if the disk is full.
    """
    with no_space_told(path.parent):
        _write_atomic(path, text)


def _write_atomic(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, whose files nobody but their owner may read: a study folder is often shared.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
