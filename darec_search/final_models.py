"""From the winner to the final table: models on all users, and the one opening of the test split.

1. The final model, of the winner's design, and the fixed arms that lost to it are trained on all users. Where the final
   model has the prior from counts (`promotion.prior`) the winner's design is trained without it too, as the fixed arms
   are: by them architectures are compared.
2. The test split is opened once, for all of them and the two references without training.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from torch import Tensor

from darec_search.arms import PromotionFailed
from darec_search.budget import keep_final_attempts
from darec_search.digests import sha256
from darec_search.fidelities import full_fidelity
from darec_search.promotion import OnEvent, Promotion, next_number, run_missing
from darec_search.runners.base import Runner
from darec_search.runners.final import run_final
from darec_search.space import Point
from darec_search.study import Study
from darec_search.trial import TrialSpec, make_spec
from darec_search.variants import VARIANTS, with_prior
from trainer.architecture import FIXED_ARMS, Architecture
from trainer.baselines import IN_EVERY_TABLE, REFERENCES, reference_ranks
from trainer.config import RunConfig
from trainer.data.dataset import Dataset
from trainer.inference import default_device, restore
from trainer.metrics import paired_p_value, per_user_metrics, ranking_metrics
from trainer.training.model_file import load_model
from trainer.training.result import RunResult, write_atomic
from trainer.training.warm import Warm

_OPENINGS = "test_opened.json"
_FINAL = "final comparison"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Full:
    """A model trained on all users."""

    config: RunConfig
    file: Path


def train_arms(study: Study, promotion: Promotion, runner: Runner, on_event: OnEvent) -> None:
    """Train what the final model is compared with on all users, side by side on the runner; the models are kept."""
    specs = full_specs(study, promotion)
    for spec in specs:
        study.request(spec)
    run_missing(study, runner, specs, on_event)
    for spec in specs:
        result = study.trial(spec.id).result
        if result is not None and result.status != "finished":
            logger.warning(
                "the arm %s has no place in the final table: its run on all users ended as %s (%s)",
                spec.arm, result.status, result.reason,
            )  # fmt: skip


def train_winner(study: Study, promotion: Promotion) -> RunResult:
    """Train the winner on all users with `promotion.num_workers` Ray Train workers; the model goes to `final/`.

    A finished final run is not repeated.

    Raises:
        PromotionFailed: if the run did not finish.
    """
    folder = study.folder / "final"
    config = _winner_config(study, promotion)
    if not _same_run(folder / "run.json", config):
        # Neither the model nor the checkpoint of another winner may be taken for this one's: their tensors would fit.
        keep_final_attempts(study.folder)
        study.discard("final")
    done = study.final_result()
    if done is not None and done.status == "finished" and (folder / "model.safetensors").exists():
        return done
    study.discard("final/result.json", "final/model.safetensors")
    study.write("final/run.json", config.model_dump_json(indent=2))
    result = run_final(study.config, config, folder, url=study.url("final"))
    study.fetch("final")
    if result.status != "finished":
        raise PromotionFailed(f"the final run ended as {result.status}: {result.reason}; run again to try it once more")
    return result


def open_test_split(study: Study, promotion: Promotion) -> list[dict[str, Any]]:
    """Open the test split once and compare all models on it; writes `final/metrics.json` and `comparison.json`.

    A comparison of these very models is not repeated. Every opening is recorded in `test_opened.json`.

    Returns:
        Rows of the final table: name, MRR, Recall@10, NDCG@10, and where it is not the winner's row the two-sided
        p-value of a paired t-test of reciprocal ranks against the winner. Where `prior` is set in the winner's row its
        design stands there without the prior too, if that training finished, and fixed arms have `p_value_design`, the
        p-value against that.
    """
    folder = study.folder / "final"
    models = _models(study, promotion)
    compared = {name: sha256(model.file) for name, model in models.items()}
    if _compared(study, compared) and (folder / "comparison.json").exists():
        rows: list[dict[str, Any]] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        return rows
    study.discard("final/comparison.json", "final/metrics.json")
    dataset = study.dataset()
    record_opening(study.folder, _FINAL, dataset.fingerprint, compared)
    study.publish(_OPENINGS)
    opened = dataset.unsealed(f"final comparison of study {study.config.name} ({study.id})")
    ranks = _test_ranks(models, opened, study.config.data.exclude_seen)
    users_mrr = {name: per_user_metrics(found)["mrr"] for name, found in ranks.items()}
    prior = study.config.adds_prior
    table = [_row(name, found, users_mrr, promotion, prior) for name, found in ranks.items()]
    columns = {"user": dataset.user_ids, **{name: found.numpy() for name, found in ranks.items()}}
    pq.write_table(pa.table(columns), folder / "ranks.parquet")
    metrics = {"split": "test", "users": dataset.n_users, **ranking_metrics(ranks["winner"])}
    study.publish("final/ranks.parquet")
    study.write("final/metrics.json", json.dumps(metrics, indent=2))
    study.write("final/comparison.json", json.dumps(table, indent=2))
    return table


def split_openings(study: Study) -> list[dict[str, Any]]:
    """When, why and for which models (SHA-256 of their files) this study has opened the test split, oldest first."""
    return _openings(study.folder)


def record_opening(folder: Path, reason: str, fingerprint: str, models: Mapping[str, str]) -> None:
    """Note in a study's folder that the test split is opened.

    Args:
        folder: of the study.
        reason: in a few words.
        fingerprint: of the dataset.
        models: SHA-256 of each model's file by name.
    """
    opening = {"time": time.time(), "reason": reason, "fingerprint": fingerprint, "models": dict(models)}
    write_atomic(folder / _OPENINGS, json.dumps([*_openings(folder), opening], indent=2))


def _openings(folder: Path) -> list[dict[str, Any]]:
    file = folder / _OPENINGS
    openings: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return openings


def _compared(study: Study, models: Mapping[str, str]) -> bool:
    """Whether the newest final comparison was of these models."""
    final = [opening for opening in split_openings(study) if opening["reason"] == _FINAL]
    return bool(final) and final[-1]["models"] == models


def _models(study: Study, promotion: Promotion) -> dict[str, _Full]:
    """The final model and those that it is compared with, by name."""
    models = {"winner": _Full(_winner_config(study, promotion), study.folder / "final" / "model.safetensors")}
    for spec in full_specs(study, promotion):
        file = study.trial_folder(spec.id) / "model.safetensors"
        if spec.arm and file.exists():
            models[spec.arm] = _Full(study.run_config(spec), file)
    return models


def _test_ranks(models: Mapping[str, _Full], dataset: Dataset, exclude_seen: bool) -> dict[str, Tensor]:
    """[users] test ranks by name: winner, the arms, the references."""
    warm, device = Warm(), default_device()
    ranks = {
        name: restore(full.config, load_model(full.file), warm, device).ranks(dataset, "test", known_users=True)
        for name, full in models.items()
    }
    for name in IN_EVERY_TABLE:
        ranks[name] = reference_ranks(REFERENCES[name].fit(dataset), dataset, "test", exclude_seen=exclude_seen)
    return ranks


def _row(
    name: str, ranks: Tensor, users_mrr: Mapping[str, Tensor], promotion: Promotion, prior: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, **ranking_metrics(ranks)}
    design = users_mrr.get(promotion.winner)
    if name == "winner":
        text = f"{promotion.winner}, {Architecture(promotion.best.bits).text}"
        return {**row, "prior": prior, "note": f"{text}, with the prior from counts" if prior else text}
    row["p_value"] = paired_p_value(users_mrr["winner"], users_mrr[name])
    if name == promotion.winner:
        return {**row, "note": "the winner's design without the prior, one worker"}
    if name not in FIXED_ARMS:
        return {**row, "note": "no training"}
    if design is not None:
        row["p_value_design"] = paired_p_value(design, users_mrr[name])
    return {**row, "note": "all users, one worker"}


def full_specs(study: Study, promotion: Promotion) -> list[TrialSpec]:
    """The runs on all users that the final model is compared with: its design without the prior, fixed arms."""
    fixed = [c for kind in FIXED_ARMS for c in promotion.candidates if c.arm == kind != promotion.winner]
    arms = [promotion.best, *fixed] if study.config.adds_prior else fixed
    fidelity, first = full_fidelity(study.config), next_number(study)
    return [
        make_spec(study.id, number, "full", Point(c.bits, c.weights), study.config.seed, fidelity, c.arm)
        for number, c in enumerate(arms, first)
    ]


def _winner_config(study: Study, promotion: Promotion) -> RunConfig:
    fidelity = full_fidelity(study.config)
    run = study.config.run_config(
        Architecture(promotion.best.bits).text,
        promotion.best.weights,
        study.config.seed,
        users_fraction=fidelity.users_fraction,
        epochs=fidelity.epochs,
    )
    run = VARIANTS[promotion.winner](run) if promotion.winner in VARIANTS else run
    return with_prior(run) if study.config.adds_prior else run


def _same_run(file: Path, config: RunConfig) -> bool:
    """Whether a run file asks for the same training; where data and caches lie does not matter."""
    try:
        found = RunConfig.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return False
    data = found.data.model_copy(update={"path": config.data.path})
    elsewhere = {"data": data, "cache": config.cache, "system_metrics": config.system_metrics}
    return found.model_copy(update=elsewhere) == config
