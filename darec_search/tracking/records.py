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
from typing import Any

import yaml

from darec_search.budget import ledger
from darec_search.credentials import redact
from darec_search.fidelities import trial_fidelity
from darec_search.objective import objective_of
from darec_search.study import Study, Trial, best_trial
from darec_search.tracking.notes import study_note, trial_note
from darec_search.tracking.record import PARENT, Measurement, Record
from darec_search.tracking.traces import begun, read_json, read_result
from darec_search.tracking.training_record import CURVE, Origin, data_use, test_metrics, text, training_record
from trainer.architecture import FIXED_ARMS, Architecture
from trainer.config import RunConfig
from trainer.training.result import RunResult

FINAL = "final"
OBJECTIVE = "objective"
"""What the search maximises, of every run at the search's own fidelity: these values may be compared."""


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


def _study_record(study: Study, trials: Sequence[Trial], live: bool) -> Record:
    ended = [(trial, trial.result) for trial in trials if trial.result is not None]
    ended.sort(key=lambda pair: (pair[1].cost.ended_at, pair[0].spec.number))
    done = (study.folder / FINAL / "metrics.json").exists()
    opened = (study.folder / "environment.json").stat().st_mtime
    started = min((result.cost.started_at for _, result in ended), default=opened)
    last = max((result.cost.ended_at for _, result in ended), default=started)
    final = read_result(study.folder / FINAL)
    return Record(
        key=PARENT,
        name=study.config.name,
        state="finished" if done else "running" if live else "killed",
        started_at=started,
        ended_at=None if live and not done else max(last, final.cost.ended_at if final else 0),
        params=_study_params(study),
        tags=_study_tags(study, trials),
        note=study_note(study),
        rows={CURVE: _progress(study, ended, started)},
        summary={**test_metrics(read_json(study.folder / FINAL / "metrics.json")), **_spent(study)},
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
    return {name: text(value) for name, value in params.items()}


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
    return training_record(
        _origin(study),
        spec.id,
        _trial_name(trial),
        trial.folder,
        live,
        config,
        result,
        params={"stage": spec.stage, **arm, **_design_params(study, architecture, config)},
        note=trial_note(trial, study.config.search.objective, value),
        summary={**({OBJECTIVE: value} if value is not None else {}), **test_metrics(measured)},
        data=[data_use(study.fingerprint, config, "full" if spec.fidelity.users_fraction == 1 else "search")]
        + ([data_use(study.fingerprint, config, "test")] if measured else []),
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
    return training_record(
        _origin(study),
        FINAL,
        f"final {architecture.text}",
        folder,
        live,
        config,
        result,
        params={"stage": FINAL, **_winning_arm(study), **_design_params(study, architecture, config)},
        note=f"The winner, `{architecture.text}`, trained on all users; its export is among the artifacts.",
        summary=test_metrics(measured),
        data=[
            data_use(study.fingerprint, config, "full"),
            *([data_use(study.fingerprint, config, "test")] if measured else []),
        ],
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
        summary=test_metrics(row),
        data=[data_use(study.fingerprint, config, "test")],
    )


def _design_params(study: Study, architecture: Architecture, config: RunConfig) -> dict[str, str]:
    """One parameter a layer, its three letters: an axis of at most eight values in a parallel-coordinates chart."""
    groups = architecture.text.split("-")
    layers = {layer_name(layer, architecture.layers): group for layer, group in enumerate(groups)}
    weights = _weights(config.losses.model_dump())
    searched = {f"lambda.{name}": text(weights[name]) for name in study.space.weights}
    parallel = str(sum(architecture.bits))
    return {"architecture": architecture.text, "parallel_adapters": parallel, **layers, **searched}


def layer_name(layer: int, layers: int) -> str:
    """Name of a layer's parameter: L0, or L00 where there are more than ten, so that they sort."""
    return f"L{layer:0{len(str(layers - 1))}d}"


def _weights(losses: Mapping[str, Any]) -> dict[str, float]:
    return {name: losses[name] for name in ("align", "contrastive", "collaborative")}


def _comparison(study: Study) -> dict[str, dict[str, Any]]:
    """Rows of the final table by name."""
    rows = read_json(study.folder / FINAL / "comparison.json")
    return {str(row["name"]): row for row in rows} if isinstance(rows, list) else {}


def _is_reference(row: Mapping[str, Any]) -> bool:
    return row["name"] != "winner" and row["name"] not in FIXED_ARMS and row.get("note") == "no training"


def _card(architecture: Architecture) -> str:
    layers = [architecture.layer(i) for i in range(architecture.layers)]
    return json.dumps({"architecture": architecture.text, "bits": list(architecture.bits), "layers": layers}, indent=2)


def _origin(study: Study) -> Origin:
    commit = study.environment.get("commit")
    return Origin(study.id, str(commit) if commit else None)
