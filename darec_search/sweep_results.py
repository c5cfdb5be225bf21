"""What the trainings of a run file have found: `results.json`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darec_search.runfile import RunFile
from darec_search.sweep import MEASURED, Training, trainings
from trainer.data.dataset import Split
from trainer.data.ragged import read_table
from trainer.metrics import paired_p_value, per_user_metrics
from trainer.training.result import write_atomic

FILE = "results.json"
METRICS = ("mrr", "recall@10", "ndcg@10")


def summarise(file: RunFile, out: Path) -> dict[str, Any]:
    """Gather what is finished of a run file, by run; writes `out/results.json`.

    The p-value is that of a paired t-test over users between the run's and the first run's reciprocal ranks, each the
    mean over the run's seeds; on the test split where every finished training was measured on it.
    """
    done: dict[str, list[Training]] = {name: [] for name in file.runs}
    for training in trainings(file, out):
        result = training.result()
        if result is not None and result.status == "finished":
            done[training.run].append(training)
    everything = [training for finished in done.values() for training in finished]
    split = next((split for split in MEASURED if everything and all(_measured(t, split) for t in everything)), None)
    runs = [_run(name, finished, len(file.runs[name].seeds), split) for name, finished in done.items()]
    first = next(iter(done))
    reciprocal = {
        name: reciprocal_ranks([training.folder for training in finished], split) for name, finished in done.items()
    }
    for row in runs:
        row["p_value"] = None if row["name"] == first else p_value(reciprocal[first], reciprocal[row["name"]])
    document = {"file": str(file.path), "p_value_against": first, "p_value_split": split, "runs": runs}
    write_atomic(out / FILE, json.dumps(document, indent=2))
    return document


def _measured(training: Training, split: Split) -> dict[str, Any] | None:
    path = training.folder / MEASURED[split][0]
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _run(name: str, finished: Sequence[Training], wanted: int, split: Split | None) -> dict[str, Any]:
    results = [result for training in finished if (result := training.result()) is not None]
    tests = [found for training in finished if (found := _measured(training, "test"))]
    timed = [found for training in finished if split and (found := _measured(training, split))]
    return {
        "name": name,
        "seeds": [training.seed for training in finished],
        "unfinished": wanted - len(finished),
        "validation": _spread_metrics([result.metrics for result in results]),
        "test": _spread_metrics(tests),
        "train_s": spread([result.cost.wall_s for result in results]),
        "evaluation_s": spread([found["seconds"] for found in timed]),
        "best_epoch": [result.best_epoch for result in results],
    }


def _spread_metrics(found: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    return {name: spread([metrics[name] for metrics in found]) for name in METRICS} if found else None


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, standard deviation (of the sample; None for a single value) and the values themselves."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "values": list(values)}


PerUser = tuple[list[str], Tensor]
"""Users, and [users] a figure of each."""


def reciprocal_ranks(folders: Sequence[Path], split: Split | None) -> PerUser | None:
    """Users and their reciprocal ranks in the mean over trainings; None if there is nothing measured."""
    if split is None or not folders:
        return None
    tables = [read_table(folder / MEASURED[split][1]) for folder in folders]
    found = [per_user_metrics(torch.tensor(table.column("rank").to_pylist()).double())["mrr"] for table in tables]
    return tables[0].column("user").to_pylist(), torch.stack(found).mean(0)


def p_value(first: PerUser | None, other: PerUser | None) -> float | None:
    """Of a paired t-test over users; None where the users differ or there is nothing to test."""
    if first is None or other is None or first[0] != other[0]:
        return None
    return paired_p_value(first[1], other[1])
