"""References on the test split, in files of the same form as a training's."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from darec_search.sweep import MEASURED
from trainer.baselines import REFERENCES, reference_ranks
from trainer.config import DataConfig
from trainer.data.dataset import Dataset
from trainer.metrics import ranking_metrics
from trainer.threads import single_thread
from trainer.training.result import write_atomic


def measure_reference(name: str, data: DataConfig, folder: Path) -> bool:
    """Fit a reference on the training part and rank the test items; once.

    Args:
        name: of the reference.
        data: as of the trainings beside it.
        folder: what is found goes there.

    Returns:
        Whether there was something to do.
    """
    metrics_file, ranks_file = (folder / file for file in MEASURED["test"])
    if metrics_file.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    dataset = Dataset.open(data.path).unsealed(f"reference {name} of a reproduction")
    with single_thread():
        started = time.perf_counter()
        reference = REFERENCES[name].fit(dataset)
        fitted = time.perf_counter()
        ranks = reference_ranks(reference, dataset, "test", exclude_seen=data.exclude_seen)
        ended = time.perf_counter()
    pq.write_table(pa.table({"user": dataset.user_ids, "rank": ranks.numpy()}), ranks_file)
    measured = {"split": "test", "users": dataset.n_users, **ranking_metrics(ranks)}
    measured |= {"seconds": ended - fitted, "train_s": fitted - started}
    write_atomic(metrics_file, json.dumps(measured, indent=2))
    return True
