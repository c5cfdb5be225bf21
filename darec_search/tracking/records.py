"""What a study folder says, as records that any experiment tracker can hold: a parent, a child a trial, the final run.

A record is a pure function of the folder; the same folder gives the same records, so a tracker can be rebuilt from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from darec_search.credentials import redact
from darec_search.study import Study, Trial, best_trial
from trainer.architecture import SLOTS, Architecture
from trainer.config import RunConfig
from trainer.training.result import Row, RunResult

State = Literal["running", "finished", "failed", "killed"]
STUDY, FINAL = "study", "final"
_STATES: dict[str, State] = {"finished": "finished", "pruned": "killed", "cancelled": "killed"}


@dataclass(frozen=True)
class Measurement:
    """Metrics at one optimiser step (of the parent: after one more trial). `at` is in Unix seconds."""

    step: int
    at: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Record:
    """One run of a tracker.

    Args:
        key: `study`, a trial's id, or `final`.
        name: what a person reads.
        state: where the run stands.
        started_at: Unix seconds.
        ended_at: Unix seconds; None while it runs.
        params: what was asked.
        tags: where it comes from and what became of it.
        rows: metrics by step; rows are only ever added.
        summary: metrics of the run as a whole.
        artifacts: file contents, or files, by the path that they get in the run.
        over: its result is written, so it will never change.
    """

    key: str
    name: str
    state: State
    started_at: float
    ended_at: float | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    rows: Sequence[Measurement] = ()
    summary: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, str | Path] = field(default_factory=dict)
    over: bool = False

    def artifacts_digest(self) -> str:
        """Changes when an artifact's content does."""
        digest = hashlib.sha256()
        for name, content in sorted(self.artifacts.items()):
            data = content.read_bytes() if isinstance(content, Path) else content.encode()
            digest.update(f"{name}:{len(data)}:".encode() + data)
        return digest.hexdigest()[:16]

    def digest(self, artifacts: str) -> str:
        """Changes when anything does that a tracker would show, given the digest of the artifacts."""
        key = [self.name, self.state, self.ended_at, self.params, self.tags, len(self.rows), self.summary, artifacts]
        return hashlib.sha256(json.dumps(key, sort_keys=True, default=dict).encode()).hexdigest()[:16]


def records(study: Study, live: bool, known: Container[str] = ()) -> list[Record]:
    """The parent first, then every trial that has begun, then the final run.

    Args:
        study: the study.
        live: a search is at work, so begun trials are running, and not stopped.
        known: ids of trials to leave out: results never change, so a tracker need not look at them again.
    """
    trials = study.trials()
    unknown = (trial for trial in trials if trial.spec.id not in known)
    children = [record for trial in unknown if (record := _trial_record(study, trial, live))]
    final = _final_record(study, live)
    return [_study_record(study, trials, live), *children, *([final] if final else [])]


def metric_name(name: str) -> str:
    """A metric's name without the signs that trackers refuse: recall@10 becomes recall_at_10."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name.replace("@", "_at_"))


def _study_record(study: Study, trials: Sequence[Trial], live: bool) -> Record:
    ended = [(trial, trial.result) for trial in trials if trial.result is not None]
    ended.sort(key=lambda pair: (pair[1].cost.ended_at, pair[0].spec.number))
    done = (study.folder / FINAL / "metrics.json").exists()
    opened = (study.folder / "environment.json").stat().st_mtime
    started = min((result.cost.started_at for _, result in ended), default=opened)
    last = max((result.cost.ended_at for _, result in ended), default=started)
    final = _result(study.folder / FINAL)
    return Record(
        key=STUDY,
        name=study.config.name,
        state="finished" if done else "running" if live else "killed",
        started_at=started,
        ended_at=None if live and not done else max(last, final.cost.ended_at if final else 0),
        params={name: _text(value) for name, value in _flat(study.environment.get("identity", {}))},
        tags=_study_tags(study, trials),
        rows=_progress([result for _, result in ended], started),
        summary=_test_metrics(study),
        artifacts=_study_artifacts(study),
    )


def _study_tags(study: Study, trials: Sequence[Trial]) -> dict[str, str]:
    promotion = read_json(study.folder / "promotion.json")
    best = best_trial(trials)
    tags = {
        "study": study.id,
        "fingerprint": study.fingerprint,
        "commit": study.environment.get("commit"),
        "strategy": study.config.search.strategy,
        "sampler": study.config.search.sampler,
        "lanes": study.config.resources.lanes,
        "trials": len(trials),
        "trials_finished": sum(trial.objective is not None for trial in trials),
        "best_trial": best.spec.id if best else None,
        "winner": promotion.get("winner") if isinstance(promotion, dict) else None,
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def _study_artifacts(study: Study) -> dict[str, str | Path]:
    document = study.config.model_dump(mode="json")
    if document["tracking"]["uri"]:
        document["tracking"]["uri"] = redact(document["tracking"]["uri"])
    names = ("environment.json", "promotion.json", "report.html", *_pictures(study.folder))
    files = {name: study.folder / name for name in names if (study.folder / name).is_file()}
    return {"study.yaml": yaml.safe_dump(document, sort_keys=False, width=120), **files}


def _pictures(folder: Path) -> list[str]:
    return [f"report/{file.name}" for file in sorted((folder / "report").glob("*.png"))]


def _progress(ended: Sequence[RunResult], started: float) -> list[Measurement]:
    """After each trial's end: how many there are, and the best validation MRR so far."""
    rows, best = [], -math.inf
    for count, result in enumerate(ended, start=1):
        best = max(best, -math.inf if result.objective is None else result.objective)
        values = {"elapsed_s": result.cost.ended_at - started, "trials_ended": float(count)}
        values |= {"best_mrr": best} if math.isfinite(best) else {}
        rows.append(Measurement(count, result.cost.ended_at, values))
    return rows


def _trial_record(study: Study, trial: Trial, live: bool) -> Record | None:
    """None for a trial that waits for a lane: trackers show what has begun."""
    spec, result = trial.spec, trial.result
    if result is None and not begun(trial.folder):
        return None
    architecture = Architecture(spec.bits)
    config = study.run_config(spec)
    label = f"{spec.stage} {spec.arm}" if spec.arm else spec.stage
    params: dict[str, object] = {
        "number": spec.number,
        "stage": spec.stage,
        "users_fraction": spec.fidelity.users_fraction,
    }
    if spec.arm:
        params["arm"] = spec.arm
    if spec.stage in ("architecture", "joint"):
        params["sampler"] = study.config.search.sampler
    return _run_record(
        spec.id,
        f"{spec.number:03d} {label} {architecture.text}",
        trial.folder,
        live,
        config,
        result,
        params={name: _text(value) for name, value in params.items()} | _design_params(architecture, config),
        tags=_trial_tags(study, trial),
        artifacts={
            "spec.json": trial.folder / "spec.json",
            "architecture.json": _card(architecture),
            "run.json": config.model_dump_json(indent=2),
        },
    )


def _trial_tags(study: Study, trial: Trial) -> dict[str, str]:
    tags = {"stage": trial.spec.stage, "number": str(trial.spec.number)}
    return _common_tags(study) | tags | ({"arm": trial.spec.arm} if trial.spec.arm else {})


def _final_record(study: Study, live: bool) -> Record | None:
    folder = study.folder / FINAL
    document = read_json(folder / "run.json")
    result = _result(folder)
    if not isinstance(document, dict) or (result is None and not begun(folder)):
        return None
    config = RunConfig.model_validate(document)
    architecture = Architecture.parse(config.model.architecture, study.space.layers)
    files = [name for name in ("run.json", "metrics.json", "comparison.json") if (folder / name).is_file()]
    return _run_record(
        FINAL,
        f"final {architecture.text}",
        folder,
        live,
        config,
        result,
        params={"stage": FINAL, "users_fraction": _text(config.data.users_fraction)}
        | _design_params(architecture, config),
        tags=_common_tags(study) | {"stage": FINAL},
        artifacts={name: folder / name for name in files} | {"architecture.json": _card(architecture)},
        summary=_test_metrics(study),
    )


def _run_record(
    key: str,
    name: str,
    folder: Path,
    live: bool,
    config: RunConfig,
    result: RunResult | None,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    artifacts: Mapping[str, str | Path],
    summary: Mapping[str, float] | None = None,
) -> Record:
    """What a trial and the final run have in common: one training run in one folder."""
    curve = result.curve if result else read_curve(folder / "curve.jsonl")
    started = result.cost.started_at if result else _estimated_start(folder, curve)
    files = [file for file in ("result.json", "curve.jsonl") if result and (folder / file).is_file()]
    state: State = "running" if live else "killed"
    status = "running" if live else "stopped"
    if result:
        state, status = _STATES.get(result.status, "failed"), result.status
    reason = result.reason if result else None
    return Record(
        key=key,
        name=name,
        state=state,
        started_at=started,
        ended_at=result.cost.ended_at if result else None if live else started + _seconds(curve),
        params={**params, "seed": str(config.seed), "epochs": str(config.optimization.epochs)},
        tags={**tags, "status": status, **({"reason": reason} if reason else {}), **_worker_tags(result)},
        rows=[_measurement(i, row, started) for i, row in enumerate(curve)],
        summary={**_outcome(result), **(summary or {})},
        artifacts={**artifacts, **{file: folder / file for file in files}},
        over=result is not None,
    )


def _design_params(architecture: Architecture, config: RunConfig) -> dict[str, str]:
    params = {"architecture": architecture.text, "layers": str(architecture.layers)}
    for layer in range(architecture.layers):
        kinds = architecture.layer(layer)
        params |= {f"L{layer}.{slot}": kinds[slot] for slot in SLOTS}
    losses = config.losses
    weights = {"align": losses.align, "contrastive": losses.contrastive, "collaborative": losses.collaborative}
    return params | {f"lambda.{name}": _text(value) for name, value in weights.items()}


def _common_tags(study: Study) -> dict[str, str]:
    commit = study.environment.get("commit")
    return {"study": study.id, "fingerprint": study.fingerprint, **({"commit": str(commit)} if commit else {})}


def _worker_tags(result: RunResult | None) -> dict[str, str]:
    if result is None:
        return {}
    return {"attempts": str(result.attempts), **({"worker": result.worker} if result.worker else {})}


def _outcome(result: RunResult | None) -> dict[str, float]:
    """Metrics of the best checkpoint, what a stopped run was expected to end with, and what the run cost."""
    if result is None:
        return {}
    summary = {f"best_{name}": value for name, value in result.metrics.items()}
    summary |= {"wall_s": result.cost.wall_s, "cpu_s": result.cost.cpu_s, "gpu_s": result.cost.gpu_s}
    if result.forecast is not None:
        summary |= {"forecast": result.forecast.value, "forecast_stderr": result.forecast.stderr}
    if result.best_epoch is not None:
        summary["best_epoch"] = float(result.best_epoch)
    return {metric_name(name): value for name, value in summary.items()}


def _test_metrics(study: Study) -> dict[str, float]:
    """Figures of the test split: of the final model, and of every model that it is compared with."""
    summary = {}
    document = read_json(study.folder / FINAL / "metrics.json")
    for name, value in document.items() if isinstance(document, dict) else ():
        if name != "users" and isinstance(value, int | float):
            summary[metric_name(f"test_{name}")] = float(value)
    rows = read_json(study.folder / FINAL / "comparison.json")
    for row in rows if isinstance(rows, list) else ():
        for name in ("mrr", "recall@10", "ndcg@10"):
            if row["name"] != "winner" and isinstance(row.get(name), int | float):
                summary[metric_name(f"test_{name}.{row['name']}")] = float(row[name])
    return summary


def _card(architecture: Architecture) -> str:
    layers = [architecture.layer(i) for i in range(architecture.layers)]
    return json.dumps({"architecture": architecture.text, "bits": list(architecture.bits), "layers": layers}, indent=2)


def _measurement(index: int, row: Row, started: float) -> Measurement:
    seconds = row.get("seconds", float(index))
    values = {metric_name(name): value for name, value in row.items() if name not in ("step", "seconds")}
    return Measurement(int(row.get("step", index)), started + seconds, {"elapsed_s": seconds, **values})


def begun(folder: Path) -> bool:
    """Whether a run has left a trace of training."""
    return (folder / "curve.jsonl").exists() or (folder / "checkpoint").exists()


def read_curve(file: Path) -> list[Row]:
    """The rows of a curve that is perhaps being written at this moment: a line that is not whole ends it."""
    rows: list[Row] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return rows
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_json(file: Path) -> Any:
    """A JSON document of the study folder; None while it is not there or not readable."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _result(folder: Path) -> RunResult | None:
    try:
        return RunResult.model_validate_json((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def _estimated_start(folder: Path, curve: Sequence[Row]) -> float:
    """A run without a result has not said when it began: its newest trace less the seconds it has counted."""
    traces = [folder / name for name in ("curve.jsonl", "checkpoint") if (folder / name).exists()]
    return max(file.stat().st_mtime for file in traces) - _seconds(curve)


def _seconds(curve: Sequence[Row]) -> float:
    return curve[-1].get("seconds", 0.0) if curve else 0.0


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        leaves += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return leaves


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
