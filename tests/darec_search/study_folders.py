"""Small study folders for tests, written the way a search writes them."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from darec_search.config import StudyConfig
from darec_search.controller import Stopped
from darec_search.space import Point
from darec_search.study import Study, Trial
from darec_search.trial import Fidelity, Stage, make_spec
from trainer.architecture import Architecture
from trainer.training.result import Cost, Row, RunResult, Status, write_atomic

START = 1_790_000_000.0
LEVELS = (0.01, 0.1, 1.0)


def new_study(folder: Path, layers: int = 4, trials: int = 12, fingerprint: str = "f" * 64, **fields: object) -> Study:
    """An empty study of `layers` DALayers with three levels of λ1."""
    document: dict[str, object] = {
        "name": "tiny",
        "output": str(folder),
        "data": {"path": str(folder.parent / "data"), "search_fraction": 0.5},
        "optimization": {"epochs": 8},
        "search": {"trials": trials, "epochs": 4, "weights": {"align": list(LEVELS)}},
        **fields,
    }
    return Study.open(StudyConfig.model_validate(document), fingerprint=fingerprint, layers=layers)


def curve(mrr: float, epochs: int) -> list[Row]:
    """A rising curve that ends at `mrr`."""
    return [
        {
            "epoch": float(epoch),
            "step": float(10 * epoch),
            "seconds": 2.0 * epoch,
            "loss": 5.0 / epoch,
            "mrr": mrr * (1 - 0.5**epoch) / (1 - 0.5**epochs),
            "log_likelihood": 20 * mrr * epoch / epochs - 6.0,
            "recall@10": 2 * mrr * epoch / epochs,
            "ndcg@10": 1.2 * mrr * epoch / epochs,
        }
        for epoch in range(1, epochs + 1)
    ]


def ask(study: Study, bits: Sequence[int], align: float, stage: Stage, arm: str | None = None, seed: int = 0) -> Trial:
    """Request one more trial."""
    number = len(study.trials())
    fidelity = Fidelity(users_fraction=0.5, epochs=4)
    return study.request(make_spec(study.id, number, stage, Point(tuple(bits), {"align": align}), seed, fidelity, arm))


def finish(study: Study, trial: Trial, mrr: float, started: float, seconds: float = 9.0, lane: int = 0) -> Trial:
    """Write the result of a trial that finished."""
    rows = curve(mrr, 4)
    result = RunResult(
        status="finished",
        metrics={name: rows[-1][name] for name in ("mrr", "recall@10", "ndcg@10", "log_likelihood")},
        best_epoch=4,
        curve=rows,
        cost=_cost(started, seconds),
        fingerprint=study.fingerprint,
        worker=f"lane-{lane}",
    )
    return _write(study, trial, result)


def fail(study: Study, trial: Trial, status: Status, reason: str, started: float = START, lane: int = 0) -> Trial:
    """Write the result of a trial that did not finish."""
    result = RunResult(status=status, reason=reason, cost=_cost(started, 3.0), worker=f"lane-{lane}", attempts=3)
    return _write(study, trial, result)


def begin(trial: Trial, rows: int = 2) -> None:
    """Let a pending trial have trained for `rows` evaluations."""
    lines = [json.dumps(row) for row in curve(0.03, 4)[:rows]]
    (trial.folder / "curve.jsonl").write_text("".join(line + "\n" for line in lines))


def search(study: Study, finished: int = 9, failed: int = 1, seed: int = 0) -> list[Trial]:
    """The λ grid at the serial architecture, then random architectures; two lanes, back to back."""
    rng = np.random.default_rng(seed)
    bits = study.space.bits
    trials: list[Trial] = []
    for i in range(finished + failed):
        in_grid = i < len(LEVELS)
        design = (0,) * bits if in_grid else tuple(int(bit) for bit in rng.integers(0, 2, bits))
        align = LEVELS[i] if in_grid else 0.1
        trial = ask(study, design, align, "weights" if in_grid else "architecture", seed=i)
        started = START + 10.0 * (i // 2)
        if i >= finished:
            trials.append(fail(study, trial, "out_of_memory", "CUDA out of memory on lane-1.", started, i % 2))
        else:
            mrr = 0.02 + 0.01 * float(np.mean(design)) + 0.001 * float(rng.normal())
            trials.append(finish(study, trial, mrr, started, lane=i % 2))
    return trials


def promote(study: Study, winner: str = "best-1", fixed: float = 0.025, best: float = 0.031) -> None:
    """Re-test one candidate and the two fixed arms with two seeds each and write promotion.json."""
    bits = study.space.bits
    arms = {
        "best-1": (tuple(i % 2 for i in range(bits)), best),
        "serial": ((0,) * bits, fixed - 0.002),
        "parallel": ((1,) * bits, fixed),
    }
    begin_at = max((t.result.cost.ended_at for t in study.trials() if t.result), default=START)
    candidates = []
    for index, (arm, (design, mean)) in enumerate(arms.items()):
        values = [mean - 0.0005, mean + 0.0005]
        tests = []
        for seed, value in enumerate(values, start=100):
            trial = ask(study, design, 0.1, "retest", arm, seed)
            tests.append(finish(study, trial, value, begin_at + 1 + 10 * index, lane=seed % 2).spec.id)
        searched = 0.03 if arm == "best-1" else None
        candidate = {"arm": arm, "bits": list(design), "weights": {"align": 0.1}, "trials": tests, "values": values}
        candidates.append({**candidate, "mean": mean, "stderr": 0.0005, "search_value": searched})
    document = {
        "rule": "highest mean validation MRR over the re-tests",
        "candidates": candidates,
        "winner": winner,
        "reason": f"{winner} has the highest mean.",
    }
    write_atomic(study.folder / "promotion.json", json.dumps(document))


def final_run(study: Study, bits: Sequence[int], mrr: float = 0.03, neighbours: float = 0.02) -> None:
    """Write final/ as the final run leaves it."""
    folder = study.folder / "final"
    config = study.config.run_config(Architecture(tuple(bits)).text, {"align": 0.1}, 7, users_fraction=1.0, epochs=8)
    rows = curve(mrr, 8)
    started = 2 + max((t.result.cost.ended_at for t in study.trials() if t.result), default=START)
    metrics = {name: rows[-1][name] for name in ("mrr", "recall@10", "ndcg@10")}
    result = RunResult(
        status="finished", metrics=metrics, best_epoch=8, curve=rows, cost=_cost(started, 40), worker="final"
    )
    comparison = [
        {"name": name, "mrr": value, "recall@10": 2 * value, "ndcg@10": 1.2 * value, "note": note}
        for name, value, note in (
            ("winner", mrr, ""),
            ("serial", 0.9 * mrr, ""),
            ("parallel", 0.95 * mrr, ""),
            ("popularity", 0.015, "no training"),
            ("neighbours", neighbours, "no training"),
        )
    ]
    test = {"split": "test", "users": 120, **{name: comparison[0][name] for name in metrics}}
    write_atomic(folder / "run.json", config.model_dump_json(indent=2))
    write_atomic(folder / "result.json", result.model_dump_json(indent=2))
    write_atomic(folder / "metrics.json", json.dumps(test))
    write_atomic(folder / "comparison.json", json.dumps(comparison))


def export(study: Study, bits: Sequence[int]) -> Path:
    """Write best/ with a card and a stand-in for the weights."""
    folder = study.folder / "best"
    (folder / "backbone").mkdir(parents=True)
    card = {"version": 1, "architecture": Architecture(tuple(bits)).text, "metrics": {"mrr": 0.03}, "hash": "abc"}
    (folder / "architecture.json").write_text(json.dumps(card))
    (folder / "model.safetensors").write_bytes(bytes(64))
    pq.write_table(pa.table({"id": ["a", "b", "c"]}), folder / "items.parquet")
    (folder / "backbone" / "config.json").write_text("{}")
    (folder / "README.md").write_text("# tiny\n")
    return folder


def whole_study(folder: Path, layers: int = 4, finished: int = 9, failed: int = 1) -> Study:
    """A study that went all the way to an export."""
    study = new_study(folder, layers)
    search(study, finished, failed)
    promote(study)
    winner = tuple(i % 2 for i in range(study.space.bits))
    final_run(study, winner)
    export(study, winner)
    return study


def open_store(file: Path) -> str:
    """URI of an SQLite store of MLflow, a copy of an empty one: MLflow takes seconds to make its tables."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_empty_store(), file)
    return f"sqlite:///{file}"


@functools.cache
def _empty_store() -> Path:
    from mlflow import MlflowClient

    file = Path(tempfile.mkdtemp(prefix="darec-search-tests-"), "mlflow.db")
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def _cost(started: float, seconds: float) -> Cost:
    return Cost(
        wall_s=seconds, cpu_s=seconds, started_at=started, first_step_at=started + 0.4, ended_at=started + seconds
    )


def _write(study: Study, trial: Trial, result: RunResult) -> Trial:
    write_atomic(trial.folder / "result.json", result.model_dump_json(indent=2))
    return study.trial(trial.spec.id)


def stop_after(events: int) -> Callable[[object], None]:
    """An observer that stops a study, as a signal would, after so many events."""
    left = [events]

    def observe(event: object) -> None:
        if left[0] == 0:
            raise Stopped("SIGTERM")
        left[0] -= 1

    return observe
