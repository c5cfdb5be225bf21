"""Tiny studies that really train; as a script, a controller of its own: `real_studies.py FOLDER RUNNER`."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from darec_search import runners
from darec_search.config import StudyConfig
from darec_search.controller import search
from darec_search.study import Study
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare

LAYERS = 2


def real_study(folder: Path, name: str, epochs: int = 2, trials: int = 4, **fields: object) -> Study:
    """A study over a synthetic shop; data and cache are shared by all studies of a folder."""
    data = folder / "data"
    if not data.exists():
        prepare("synthetic", None, data, users=150, items=80)
    builtin = {"layers": LAYERS, "hidden": 16, "heads": 2, "vocabulary": 400, "steps": 20}
    document = {
        "name": "tiny",
        "output": str(folder / name),
        "cache": str(folder / "cache"),
        "data": {"path": str(data), "max_items": 10},
        "model": {
            "backbone": {"builtin": builtin},
            "adapters": {"bottleneck": 8},
            "collaborative": {"dimension": 8},
        },
        "negatives": {"mf_dimension": 8},
        "optimization": {"epochs": epochs, "batch_size": 32, "learning_rate": 1e-3},
        "search": {"sampler": "random", "trials": trials, "strategy": "joint"},
        **fields,
    }
    return Study.open(StudyConfig.model_validate(document), Dataset.open(data).fingerprint, LAYERS)


def pid_of(worker: str) -> int:
    """The process in a worker's name, `lane-0/pid-123@host`."""
    return int(worker.split("pid-")[1].split("@")[0])


def lane_pids() -> set[int]:
    """Living processes of Ray Train workers under this one."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if any("RayTrainWorker" in part for part in child.cmdline())}


if __name__ == "__main__":
    study = real_study(Path(sys.argv[1]), "study", resources={"runner": sys.argv[2], "lanes": 1})
    with runners.create(study) as runner:
        search(study, runner, lambda event: print(type(event).__name__, event.trial_id, flush=True))
