"""What a study folder says, as records that any experiment tracker can hold.

A study is a parent; its trials, its final run and the references without training are children. Everything in a child
is there to be compared with its siblings; what all of them share stands in the parent alone.

A record is a pure function of the folder; the same folder gives the same records, so a tracker can be rebuilt from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from darec_search.budget import ledger
from darec_search.credentials import redact
from darec_search.fidelities import trial_fidelity
from darec_search.objective import objective_of
from darec_search.study import Study, Trial, best_trial
from darec_search.tracking.notes import study_note, trial_note
from darec_search.tracking.record import DataUse, Measurement, Record, State
from darec_search.tracking.traces import begun, estimated_start, read_curve, read_json, read_result, seconds_of
from trainer.architecture import FIXED_ARMS, Architecture
from trainer.config import RunConfig
from trainer.storage import is_url, local_path
from trainer.training.result import Row, RunResult
from trainer.training.usage import USAGE

STUDY, FINAL = "study", "final"
OBJECTIVE = "objective"
"""What the search maximises, of every run at the search's own fidelity: these values may be compared."""
CURVE, SYSTEM = "curve/elapsed_s", "system/process_cpu_percent"
"""A metric of every row of the two series, by which a tracker tells which steps it has."""
_STATES: dict[str, State] = {"finished": "finished", "pruned": "killed", "cancelled": "killed"}
_TEST_METRICS = ("mrr", "recall@10", "ndcg@10")


def records(study: Study, live: bool, known: Container[str] = ()) -> list[Record]:
    """The parent first, then every trial that has begun, the final run, and the references.

    Args:
        study: the study.
        live: a search is at work, so begun trials are running, and not stopped.
        known: keys of records that were over: they never change, so a tracker need not look at them again.
    """
    trials = study.trials()
    tested = _comparison(study)
    unknown = (trial for trial in trials if trial.spec.id not in known)
    children = [record for trial in unknown if (record := _trial_record(study, trial, live, tested))]
    final = _final_record(study, live)
    untrained = [row for row in tested.values() if _is_reference(row)] if final else []
    references = [_reference_record(study, row, final) for row in untrained if final]
    return [_study_record(study, trials, live), *children, *([final] if final else []), *references]


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
    final = read_result(study.folder / FINAL)
    return Record(
        key=STUDY,
        name=study.config.name,
        state="finished" if done else "running" if live else "killed",
        started_at=started,
        ended_at=None if live and not done else max(last, final.cost.ended_at if final else 0),
        params=_study_params(study),
        tags=_study_tags(study, trials),
        note=study_note(study),
        rows={CURVE: _progress(study, ended, started)},
        summary={**_test_metrics(read_json(study.folder / FINAL / "metrics.json")), **_spent(study)},
        artifacts=_study_artifacts(study),
    )


def _spent(study: Study) -> dict[str, float]:
    """What the whole study has cost: `cost/gpu_hours` or `cost/cpu_hours`, and `cost/price` where a price is given."""
    spent = ledger(study)
    hours = {f"cost/{spent.unit.lower().replace('-', '_')}": spent.hours}
    return hours if spent.cost is None else {**hours, "cost/price": spent.cost}


def _study_params(study: Study) -> dict[str, str]:
    """What tells studies apart and never changes within one; the rest is in the artifact study.yaml."""
    config = study.config
    searched = study.space.weights
    fixed = {f"lambda.{name}": value for name, value in _weights(config.losses.model_dump()).items()}
    params: dict[str, object] = {
        "backbone": config.model.backbone.name,
        "layers": study.space.layers,
        "collaborative": config.model.collaborative.model,
        "bottleneck": config.model.adapters.bottleneck,
        "learning_rate": config.optimization.learning_rate,
        "batch_size": config.optimization.batch_size,
        **{name: value for name, value in fixed.items() if name.removeprefix("lambda.") not in searched},
    }
    return {name: _text(value) for name, value in params.items()}


def _study_tags(study: Study, trials: Sequence[Trial]) -> dict[str, str]:
    promotion = read_json(study.folder / "promotion.json")
    best = best_trial(trials)
    tags = {
        "study": study.id,
        "fingerprint": study.fingerprint,
        "commit": study.environment.get("commit"),
        "strategy": study.config.search.strategy,
        "sampler": study.config.search.sampler,
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
    names = (
        "environment.json",
        "promotion.json",
        "effects.json",
        "audit.json",
        "report.html",
        *_pictures(study.folder),
    )
    files = {name: study.folder / name for name in names if (study.folder / name).is_file()}
    return {"study.yaml": yaml.safe_dump(document, sort_keys=False, width=120), **files}


def _pictures(folder: Path) -> list[str]:
    return [f"report/{file.name}" for file in sorted((folder / "report").glob("*.png"))]


def _progress(study: Study, ended: Sequence[tuple[Trial, RunResult]], started: float) -> list[Measurement]:
    """After each trial's end: how many there are, and the best objective so far."""
    rows, best = [], -math.inf
    for count, (trial, result) in enumerate(ended, start=1):
        value = _objective(study, trial)
        best = max(best, -math.inf if value is None else value)
        values = {CURVE: result.cost.ended_at - started, "curve/trials_ended": float(count)}
        values |= {"curve/best_objective": best} if math.isfinite(best) else {}
        rows.append(Measurement(count, result.cost.ended_at, values))
    return rows


def _objective(study: Study, trial: Trial) -> float | None:
    """What the search maximises, of a trial that finished at the search's own fidelity; else None."""
    result = trial.result
    if result is None or trial.objective is None or trial.spec.fidelity != trial_fidelity(study.config):
        return None
    return objective_of(study.config.search.objective, result.curve or [result.metrics])


def _trial_record(study: Study, trial: Trial, live: bool, tested: Mapping[str, Mapping[str, Any]]) -> Record | None:
    """None for a trial that waits for a lane: trackers show what has begun."""
    spec, result = trial.spec, trial.result
    if result is None and not begun(trial.folder):
        return None
    architecture = Architecture(spec.bits)
    config = study.run_config(spec)
    arm = {"arm": spec.arm} if spec.arm else {}
    measured = tested.get(spec.arm or "") if spec.stage == "full" else None
    value = _objective(study, trial)
    return _run_record(
        study,
        spec.id,
        _trial_name(trial),
        trial.folder,
        live,
        config,
        result,
        params={"stage": spec.stage, **arm, **_design_params(study, architecture, config)},
        note=trial_note(trial, study.config.search.objective, value),
        summary={**({OBJECTIVE: value} if value is not None else {}), **_test_metrics(measured)},
        data=[_data_use(study, config, "full" if spec.fidelity.users_fraction == 1 else "search")]
        + ([_data_use(study, config, "test")] if measured else []),
        artifacts={
            "spec.json": trial.folder / "spec.json",
            "architecture.json": _card(architecture),
            "run.json": config.model_dump_json(indent=2),
        },
        # The fixed arms get their test figures after their end.
        over=result is not None and spec.stage != "full",
    )


def _trial_name(trial: Trial) -> str:
    """Number, and what this trial is about: λ, bits, an arm's seed."""
    spec = trial.spec
    weights = ", ".join(f"{name} {value:g}" for name, value in spec.weights.items())
    architecture = Architecture(spec.bits).text
    about = {
        "weights": weights or architecture,
        "architecture": architecture,
        "joint": f"{architecture} {weights}".strip(),
        "retest": f"{spec.arm}, seed {spec.seed}",
        "variant": f"{spec.arm}, seed {spec.seed}",
        "audit": f"{architecture}, all users",
        "full": f"{spec.arm}, all users",
    }
    return f"{spec.number:03d} {about[spec.stage]}"


def _final_record(study: Study, live: bool) -> Record | None:
    folder = study.folder / FINAL
    document = read_json(folder / "run.json")
    result = read_result(folder)
    if not isinstance(document, dict) or (result is None and not begun(folder)):
        return None
    config = RunConfig.model_validate(document)
    architecture = Architecture.parse(config.model.architecture, study.space.layers)
    measured = read_json(folder / "metrics.json")
    # The ranks of single users let a later champion be compared with this one user by user.
    names = ("run.json", "metrics.json", "comparison.json", "ranks.parquet")
    return _run_record(
        study,
        FINAL,
        f"final {architecture.text}",
        folder,
        live,
        config,
        result,
        params={"stage": FINAL, **_winning_arm(study), **_design_params(study, architecture, config)},
        note=f"The winner, `{architecture.text}`, trained on all users; its export is among the artifacts.",
        summary=_test_metrics(measured),
        data=[_data_use(study, config, "full"), *([_data_use(study, config, "test")] if measured else [])],
        artifacts={name: folder / name for name in names if (folder / name).is_file()}
        | {"architecture.json": _card(architecture)},
    )


def _winning_arm(study: Study) -> dict[str, str]:
    promotion = read_json(study.folder / "promotion.json")
    return {"arm": str(promotion["winner"])} if isinstance(promotion, dict) and "winner" in promotion else {}


def _reference_record(study: Study, row: Mapping[str, Any], final: Record) -> Record:
    """A model without training, so that it stands in the same table; it was measured when the final run was."""
    config = RunConfig.model_validate(read_json(study.folder / FINAL / "run.json"))
    return Record(
        key=str(row["name"]),
        name=f"{row['name']}, no training",
        state="finished",
        started_at=final.ended_at or final.started_at,
        ended_at=final.ended_at or final.started_at,
        params={"stage": "reference", "arm": str(row["name"])},
        tags={"study": study.id, "status": "finished"},
        note="Needs no training: what a model has to beat to be worth its cost.",
        summary=_test_metrics(row),
        data=[_data_use(study, config, "test")],
    )


def _run_record(
    study: Study,
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
    """What a trial and the final run have in common: one training run in one folder."""
    curve = result.curve if result else read_curve(folder / "curve.jsonl")
    usage = read_curve(folder / USAGE)
    started = result.cost.started_at if result else estimated_start(folder, curve)
    files = [file for file in ("result.json", "curve.jsonl", USAGE) if result and (folder / file).is_file()]
    state: State = "running" if live else "killed"
    status = "running" if live else "stopped"
    if result:
        state, status = _STATES.get(result.status, "failed"), result.status
    reason = result.reason if result else None
    fidelity = {"users_fraction": _text(config.data.users_fraction), "epochs": str(config.optimization.epochs)}
    tags = {"study": study.id, "status": status, **({"reason": reason} if reason else {}), **_worker_tags(result)}
    commit = study.environment.get("commit")
    return Record(
        key=key,
        name=name,
        state=state,
        started_at=started,
        ended_at=result.cost.ended_at if result else None if live else started + seconds_of(curve),
        params={**params, **fidelity, "seed": str(config.seed)},
        tags={**tags, **({"commit": str(commit)} if commit else {})},
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


def _design_params(study: Study, architecture: Architecture, config: RunConfig) -> dict[str, str]:
    """One parameter a layer, its three letters: an axis of at most eight values in a parallel-coordinates chart."""
    groups = architecture.text.split("-")
    layers = {layer_name(layer, architecture.layers): group for layer, group in enumerate(groups)}
    weights = _weights(config.losses.model_dump())
    searched = {f"lambda.{name}": _text(weights[name]) for name in study.space.weights}
    parallel = str(sum(architecture.bits))
    return {"architecture": architecture.text, "parallel_adapters": parallel, **layers, **searched}


def layer_name(layer: int, layers: int) -> str:
    """Name of a layer's parameter: L0, or L00 where there are more than ten, so that they sort."""
    return f"L{layer:0{len(str(layers - 1))}d}"


def _weights(losses: Mapping[str, Any]) -> dict[str, float]:
    return {name: losses[name] for name in ("align", "contrastive", "collaborative")}


def _data_use(study: Study, config: RunConfig, context: Literal["search", "full", "test"]) -> DataUse:
    location = config.data.path
    profile: dict[str, object] = {"fingerprint": study.fingerprint}
    manifest = None if is_url(location) else read_json(local_path(location) / "manifest.json")
    if isinstance(manifest, dict) and manifest.get("fingerprint") == study.fingerprint:
        profile |= {name: manifest[name] for name in ("users", "items", "interactions") if name in manifest}
    last = location.rstrip("/").rpartition("/")[2]
    return DataUse(f"{last}, test split" if context == "test" else last, context, location, profile)


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


def _test_metrics(row: object) -> dict[str, float]:
    """Figures of the test split, from final/metrics.json or a row of final/comparison.json."""
    found = row if isinstance(row, dict) else {}
    names = [name for name in _TEST_METRICS if isinstance(found.get(name), int | float)]
    return {metric_name(f"test/{name}"): float(found[name]) for name in names}


def _comparison(study: Study) -> dict[str, dict[str, Any]]:
    """Rows of the final table by name."""
    rows = read_json(study.folder / FINAL / "comparison.json")
    return {str(row["name"]): row for row in rows} if isinstance(rows, list) else {}


def _is_reference(row: Mapping[str, Any]) -> bool:
    return row["name"] != "winner" and row["name"] not in FIXED_ARMS and row.get("note") == "no training"


def _card(architecture: Architecture) -> str:
    layers = [architecture.layer(i) for i in range(architecture.layers)]
    return json.dumps({"architecture": architecture.text, "bits": list(architecture.bits), "layers": layers}, indent=2)


def _measurement(index: int, row: Row, started: float) -> Measurement:
    seconds = row.get("seconds", float(index))
    shown = {name: value for name, value in row.items() if name not in ("step", "seconds", "epoch", "time")}
    values = {metric_name(f"curve/{name}"): value for name, value in shown.items()}
    return Measurement(int(row.get("step", index)), started + seconds, {CURVE: seconds, **values})


def _usage(index: int, row: Row) -> Measurement:
    return Measurement(index, row["at"], {f"system/{name}": value for name, value in row.items() if name != "at"})


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
