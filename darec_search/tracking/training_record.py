"""One training as a record: its curve, metrics, cost and files, whoever asked for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from darec_search.tracking.record import DataUse, Measurement, Record, State
from darec_search.tracking.traces import estimated_start, read_curve, read_json, seconds_of
from trainer.config import RunConfig
from trainer.storage import is_url, local_path
from trainer.training.result import Row, RunResult
from trainer.training.usage import USAGE

CURVE, SYSTEM = "curve/elapsed_s", "system/process_cpu_percent"
"""A metric of every row of the two series, by which a tracker tells which steps it has."""
_STATES: dict[str, State] = {"finished": "finished", "pruned": "killed", "cancelled": "killed"}
_TEST_METRICS = ("mrr", "recall@10", "ndcg@10")


@dataclass(frozen=True)
class Origin:
    """Where records come from: the id of their study or folder, and the commit of the code where it is known."""

    id: str
    commit: str | None = None


def training_record(
    origin: Origin,
    key: str,
    name: str,
    folder: Path,
    live: bool,
    config: RunConfig,
    result: RunResult | None,
    *,
    params: Mapping[str, str],
    note: str,
    summary: Mapping[str, float],
    data: Sequence[DataUse],
    artifacts: Mapping[str, str | Path],
    over: bool = False,
) -> Record:
    """What all trainings have in common: one run in one folder.

    Args:
        origin: of the record.
        key: of the record.
        name: of the record.
        folder: of the training.
        live: it is perhaps being trained at this moment, so without a result it is running, and not stopped.
        config: of the training.
        result: of the training; None while it has none.
        params: beside seed and fidelity.
        note: as of `Record`.
        summary: beside validation metrics and cost.
        data: as of `Record`.
        artifacts: beside the training's own files.
        over: as of `Record`.
    """
    curve = result.curve if result else read_curve(folder / "curve.jsonl")
    usage = read_curve(folder / USAGE)
    started = result.cost.started_at if result else estimated_start(folder, curve)
    files = [file for file in ("result.json", "curve.jsonl", USAGE) if result and (folder / file).is_file()]
    state: State = "running" if live else "killed"
    status = "running" if live else "stopped"
    if result:
        state, status = _STATES.get(result.status, "failed"), result.status
    reason = result.reason if result else None
    fidelity = {"users_fraction": text(config.data.users_fraction), "epochs": str(config.optimization.epochs)}
    tags = {"study": origin.id, "status": status, **({"reason": reason} if reason else {}), **_worker_tags(result)}
    return Record(
        key=key,
        name=name,
        state=state,
        started_at=started,
        ended_at=result.cost.ended_at if result else None if live else started + seconds_of(curve),
        params={**params, **fidelity, "seed": str(config.seed)},
        tags={**tags, **({"commit": origin.commit} if origin.commit else {})},
        note=note,
        rows={
            CURVE: [_measurement(i, row, started) for i, row in enumerate(curve)],
            SYSTEM: [_usage(i, row) for i, row in enumerate(usage)],
        },
        summary={**summary, **_outcome(result)},
        data=data,
        artifacts={**artifacts, **{file: folder / file for file in files}},
        over=over,
    )


def data_use(fingerprint: str, config: RunConfig, context: Literal["search", "full", "test"]) -> DataUse:
    """The dataset of a training."""
    location = config.data.path
    profile: dict[str, object] = {"fingerprint": fingerprint}
    manifest = None if is_url(location) else read_json(local_path(location) / "manifest.json")
    if isinstance(manifest, dict) and manifest.get("fingerprint") == fingerprint:
        profile |= {name: manifest[name] for name in ("users", "items", "interactions") if name in manifest}
    last = location.rstrip("/").rpartition("/")[2]
    return DataUse(f"{last}, test split" if context == "test" else last, context, location, profile)


def test_metrics(row: object) -> dict[str, float]:
    """Figures of the test split, from final/metrics.json or a row of final/comparison.json."""
    found = row if isinstance(row, dict) else {}
    names = [name for name in _TEST_METRICS if isinstance(found.get(name), int | float)]
    return {metric_name(f"test/{name}"): float(found[name]) for name in names}


def metric_name(name: str) -> str:
    """A metric's name without the signs that trackers refuse: recall@10 becomes recall_at_10."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name.replace("@", "_at_"))


def text(value: object) -> str:
    """A parameter's value."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)


def _worker_tags(result: RunResult | None) -> dict[str, str]:
    if result is None or not result.worker:
        return {}
    return {"worker": result.worker, **({"attempts": str(result.attempts)} if result.attempts > 1 else {})}


def _outcome(result: RunResult | None) -> dict[str, float]:
    """Metrics of the best checkpoint, what a stopped run was expected to end with, and what the run cost."""
    if result is None:
        return {}
    summary = {f"valid/{name}": value for name, value in result.metrics.items()}
    summary |= {"cost/wall_s": result.cost.wall_s, "cost/cpu_s": result.cost.cpu_s}
    if result.cost.gpu_s:
        summary["cost/gpu_s"] = result.cost.gpu_s
    if result.forecast is not None:
        summary |= {"forecast/value": result.forecast.value, "forecast/stderr": result.forecast.stderr}
    if result.best_epoch is not None:
        summary["valid/best_epoch"] = float(result.best_epoch)
    return {metric_name(name): value for name, value in summary.items()}


def _measurement(index: int, row: Row, started: float) -> Measurement:
    seconds = row.get("seconds", float(index))
    shown = {name: value for name, value in row.items() if name not in ("step", "seconds", "epoch", "time")}
    values = {metric_name(f"curve/{name}"): value for name, value in shown.items()}
    return Measurement(int(row.get("step", index)), started + seconds, {CURVE: seconds, **values})


def _usage(index: int, row: Row) -> Measurement:
    return Measurement(index, row["at"], {f"system/{name}": value for name, value in row.items() if name != "at"})
