"""The trainings of a run file, one after the other: each in a folder of its own, measured when it is done.

A folder holds what `trainer.training.run` leaves and, once the model was measured on a split, per user and in the mean:
metrics.json, ranks.parquet for the test split; validation.json, validation.parquet for the validation split.
Two processes may share the work of one file by `--only`: a finished training is never repeated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from darec_search.findings import Findings
from darec_search.planning import prepared_dataset
from darec_search.runfile import RunFile
from trainer.architecture import Architecture
from trainer.baselines import baseline_options
from trainer.config import BackboneConfig, RunConfig
from trainer.data.dataset import Split
from trainer.inference import default_device, restore, restore_baseline
from trainer.metrics import ranking_metrics
from trainer.training.attempts import Held
from trainer.training.model_file import load_model
from trainer.training.result import Row, RunResult, write_atomic
from trainer.training.run import open_folder, run
from trainer.training.warm import Warm, check_positions, check_run, da_layer_count

MEASURED: dict[Split, tuple[str, str]] = {
    "test": ("metrics.json", "ranks.parquet"),
    "validation": ("validation.json", "validation.parquet"),
}
"""Names of the metrics' and the ranks' file of each split."""


@dataclass(frozen=True)
class Training:
    """One training of a run file."""

    run: str
    seed: int
    config: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """Run and seed."""
        return f"{self.run}-{self.seed}"

    def result(self) -> RunResult | None:
        """Its result, once it has one."""
        file = self.folder / "result.json"
        return RunResult.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None


class Observer(Protocol):
    """Is told how the trainings get on."""

    def begins(self, training: Training) -> None:
        """A training begins, or its finished folder is looked at."""
        ...

    def row(self, training: Training, row: Row) -> None:
        """A training was evaluated."""
        ...

    def ended(self, training: Training, result: RunResult, before: bool) -> None:
        """A training has its result; `before` if an earlier start left it."""
        ...


def trainings(file: RunFile, out: Path) -> list[Training]:
    """The trainings of a run file: in `out` itself for a single one, in `out/NAME-SEED` each for several."""
    return [
        Training(name, seed, config, out / f"{name}-{seed}" if file.sweep else out)
        for name, planned in file.runs.items()
        for seed, config in planned.seeded().items()
    ]


def inspect_runs(file: RunFile) -> Findings:
    """Look at everything about a run file that can be known without training; absent datasets are prepared."""
    found = Findings()
    unreachable: set[BackboneConfig] = set()
    for planned in file.runs.values():
        config, backbone = planned.config, planned.config.model.backbone
        found.collect(partial(prepared_dataset, config.data.path, planned.prepare))
        if config.baseline is not None:
            found.collect(partial(baseline_options, config.baseline))
            continue
        if backbone in unreachable:
            continue
        missing = len(found.missing)
        layers = found.collect(partial(da_layer_count, config))
        if len(found.missing) > missing:
            # A hub that does not answer is asked for a minute; once is enough.
            unreachable.add(backbone)
        if layers is None:
            continue
        try:
            Architecture.parse(config.model.architecture, layers)
        except ValueError as error:
            found.problems.append(f"model.architecture: {error}")
        found.collect(partial(check_positions, config))
    return found


def train_all(planned: list[Training], split: Split | None, observer: Observer) -> Iterator[RunResult]:
    """Train and measure, oldest first; finished trainings are left as they are.

    Args:
        planned: what to train.
        split: the split to measure each model on; None for none. `test` opens the test split once a training.
        observer: is told.

    Yields:
        The result of each.

    Raises:
        BadInput: before any training, for anything the user can mend.
    """
    warm = Warm()
    for training in planned:
        check_run(training.config, warm)
    for training in planned:
        observer.begins(training)
        result, before = train_one(training, split, warm, partial(observer.row, training))
        observer.ended(training, result, before)
        yield result


def train_one(
    training: Training,
    split: Split | None,
    warm: Warm,
    on_row: Callable[[Row], None] | None = None,
    *,
    keep_model: bool = True,
    held: Held | None = None,
) -> tuple[RunResult, bool]:
    """Train and measure what is not done yet of one training.

    Args:
        training: what to train.
        split: the split to measure its model on; None for none.
        warm: what this process keeps between trainings.
        on_row: is told every evaluation.
        keep_model: leave the trained tensors in its folder; needed for a split.
        held: what it holds, as for `trainer.training.run.run`.

    Returns:
        Its result, and whether an earlier start left it.

    Raises:
        BadInput: if its folder holds another training, or cannot be written.
    """
    result = open_folder(training.config, training.folder)
    before = result is not None
    if result is None:
        result = run(training.config, training.folder, warm=warm, keep_model=keep_model, on_row=on_row, held=held)
    if split is not None and result.status == "finished":
        measure(training, split, warm)
    return result, before


def measure(training: Training, split: Split, warm: Warm) -> None:
    """Rank the held-out item of every user with a finished training's model; measured once."""
    metrics_file, ranks_file = (training.folder / name for name in MEASURED[split])
    if metrics_file.exists():
        return
    config = training.config
    state = load_model(training.folder / "model.safetensors")
    dataset = warm.judged(config).dataset
    if split == "test":
        dataset = dataset.unsealed(f"training {training.folder.name} of a run file")
    if config.baseline is not None:
        rank = restore_baseline(config, state, dataset, default_device()).ranks
    else:
        rank = partial(restore(config, state, warm, default_device()).ranks, known_users=True)
    started = time.perf_counter()
    ranks = rank(dataset, split)
    seconds = time.perf_counter() - started
    pq.write_table(pa.table({"user": dataset.user_ids, "rank": ranks.numpy()}), ranks_file)
    measured = {"split": split, "users": dataset.n_users, **ranking_metrics(ranks), "seconds": seconds}
    write_atomic(metrics_file, json.dumps(measured, indent=2))
