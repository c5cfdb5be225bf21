"""From the search's best points to one model.

1. The best few designs of the search and the two fixed arms are trained again on the search data with fresh seeds: the
   best of many noisy trials is often luck, so search-time scores do not count in the choice.
2. The highest mean wins; a fixed arm wins ties.
3. The winner and the fixed arms are trained on all users.
4. The test split is opened once, for all of them and the two references without training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError
from torch import Tensor

from darec_search.asking import Proposing
from darec_search.controller import search_fidelities, search_fidelity
from darec_search.runners.base import DoneEvent, Event, Runner
from darec_search.runners.final import run_final
from darec_search.space import Point
from darec_search.study import Study, Trial
from darec_search.trial import SEARCH_STAGES, Fidelity, TrialSpec, make_spec
from trainer.architecture import FIXED_ARMS, Architecture
from trainer.baselines import REFERENCES, reference_ranks
from trainer.config import RunConfig, Section
from trainer.data.dataset import Dataset
from trainer.inference import default_device, restore
from trainer.metrics import paired_p_value, per_user_metrics, ranking_metrics
from trainer.training.model_file import load_model
from trainer.training.result import RunResult, write_atomic
from trainer.training.warm import Warm

RULE = "highest mean validation MRR over fresh seeds on the search data; a fixed arm wins ties"
_FRESH_SEEDS = 1000
"""Distance of the re-tests' seeds from those of the search."""
_OPENINGS = "test_opened.json"

logger = logging.getLogger(__name__)
OnEvent = Callable[[Event], None]


class PromotionFailed(RuntimeError):  # noqa: N818 - reads as what it is where it is raised
    """There is nothing to promote, such as when no trial finished."""


class Candidate(Section):
    """One arm of the re-test."""

    arm: str = Field(description="best-1, best-2, …, serial, parallel.")
    bits: tuple[int, ...]
    weights: dict[str, float]
    trials: list[str] = Field(description="Ids of its re-tests.")
    values: list[float] = Field(description="Validation MRR of those that finished, by seed.")
    mean: float | None = Field(description="Mean of `values`.")
    stderr: float | None = Field(description="Standard error of the mean; None for a single value.")
    search_value: float | None = Field(description="Mean validation MRR during the search, where it was tried.")


class Promotion(Section):
    """`promotion.json`: who was tested again, who won and why."""

    rule: str
    candidates: list[Candidate]
    winner: str
    reason: str

    @property
    def best(self) -> Candidate:
        """The winner."""
        return next(candidate for candidate in self.candidates if candidate.arm == self.winner)


@dataclass(frozen=True)
class _Full:
    """A model trained on all users."""

    config: RunConfig
    file: Path


def candidates(study: Study) -> dict[str, Point]:
    """Arms of the re-test by name: the sampler's recommendation, the designs of best mean value, then the fixed arms.

    The recommendation leads, because the luckiest of many noisy trials is seldom the best; its weights are the fixed
    arms' too. The others follow what was observed, in case the sampler's model is wrong.

    Raises:
        PromotionFailed: if no trial of the search finished.
    """
    values = search_values(study, study.config.search.objective)
    if not values:
        failed = [trial.result.reason for trial in study.trials() if trial.result and trial.result.reason]
        raise PromotionFailed(f"no trial of the search finished{': ' + failed[-1] if failed else ''}")
    ranked = sorted(values, key=lambda point: -values[point])
    recommended = _recommended(study) or ranked[0]
    best = [recommended, *(point for point in ranked if point != recommended)][: study.config.promotion.candidates]
    arms = {f"best-{place}": point for place, point in enumerate(best, 1)}
    for kind in FIXED_ARMS:
        point = Point(Architecture.uniform(study.space.layers, kind).bits, best[0].weights)
        # A fixed arm that the search found by itself keeps its own name.
        arms = {arm: other for arm, other in arms.items() if other != point}
        arms[kind] = point
    return arms


def _recommended(study: Study) -> Point | None:
    """What a sampler of bits and λ recommends that knows all trials of the search as the search's own samplers do.

    None if none of their designs, as the config has them now, has a value.
    """
    whole = Proposing(study, "joint", study.space, {}, search_fidelities(study))
    searched = (trial for trial in study.trials() if trial.spec.stage in SEARCH_STAGES)
    known = (trial for trial in searched if trial.spec.fidelity in whole.fidelities)
    sampler = whole.told(trial for trial in known if trial.spec.point in study.space)
    return sampler.best() if sampler.history.observations else None


def search_values(study: Study, objective: str) -> dict[Point, float]:
    """Mean value by an objective of every point that the search finished at its own fidelity."""
    values: dict[Point, list[float]] = defaultdict(list)
    for trial in _search_trials(study):
        value = trial.search_value(objective)
        if value is not None and math.isfinite(value):
            values[trial.spec.point].append(value)
    return {point: statistics.fmean(found) for point, found in values.items()}


def _search_trials(study: Study) -> list[Trial]:
    """Every trial of the search at its own fidelity, whatever part of it asked, by number."""
    fidelity = search_fidelity(study)
    return [trial for trial in study.trials() if trial.spec.stage in SEARCH_STAGES and trial.spec.fidelity == fidelity]


def retest(study: Study, runner: Runner, on_event: OnEvent) -> Promotion:
    """Test the candidates again and choose; writes `promotion.json`. Resumable: finished re-tests are not repeated.

    Raises:
        PromotionFailed: if no trial of the search, or no re-test, finished.
    """
    arms = candidates(study)
    fidelity = search_fidelity(study)
    seeds = [study.config.seed + _FRESH_SEEDS + repeat for repeat in range(study.config.promotion.repeats)]
    specs = {arm: [_request(study, point, seed, fidelity, arm) for seed in seeds] for arm, point in arms.items()}
    # Seed by seed, so that an interrupted re-test has compared all arms equally.
    _run(study, runner, [specs[arm][place] for place in range(len(seeds)) for arm in arms], on_event)
    found = search_values(study, "mrr")
    promotion = _decide([_candidate(study, arm, point, specs[arm], found.get(point)) for arm, point in arms.items()])
    write_atomic(study.folder / "promotion.json", promotion.model_dump_json(indent=2))
    logger.info("%s", promotion.reason)
    return promotion


def train_fixed_arms(study: Study, promotion: Promotion, runner: Runner, on_event: OnEvent) -> None:
    """Train the fixed arms that did not win on all users, side by side on the runner; their models are kept."""
    specs = fixed_arm_specs(study, promotion)
    for spec in specs:
        study.request(spec)
    _run(study, runner, specs, on_event)
    for spec in specs:
        result = study.trial(spec.id).result
        if result is not None and result.status != "finished":
            logger.warning(
                "the fixed arm %s has no place in the final table: its run on all users ended as %s (%s)",
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
        shutil.rmtree(folder, ignore_errors=True)
    done = study.final_result()
    if done is not None and done.status == "finished" and (folder / "model.safetensors").exists():
        return done
    for stale in ("result.json", "model.safetensors"):
        (folder / stale).unlink(missing_ok=True)
    write_atomic(folder / "run.json", config.model_dump_json(indent=2))
    result = run_final(study.config, config, folder)
    if result.status != "finished":
        raise PromotionFailed(f"the final run ended as {result.status}: {result.reason}; run again to try it once more")
    return result


def open_test_split(study: Study, promotion: Promotion) -> list[dict[str, Any]]:
    """Open the test split once and compare all models on it; writes `final/metrics.json` and `comparison.json`.

    A comparison of these very models is not repeated. Every opening is recorded in `test_opened.json`.

    Returns:
        Rows of the final table: name, MRR, Recall@10, NDCG@10, and where it is not the winner's row the two-sided
        p-value of a paired t-test of reciprocal ranks against the winner.
    """
    folder = study.folder / "final"
    models = _models(study, promotion)
    compared = {name: hashlib.sha256(model.file.read_bytes()).hexdigest() for name, model in models.items()}
    openings = split_openings(study)
    if openings and openings[-1]["models"] == compared and (folder / "comparison.json").exists():
        rows: list[dict[str, Any]] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        return rows
    for stale in ("comparison.json", "metrics.json"):
        (folder / stale).unlink(missing_ok=True)
    dataset = study.dataset()
    opening = {"time": time.time(), "reason": "final comparison", "fingerprint": dataset.fingerprint}
    write_atomic(study.folder / _OPENINGS, json.dumps([*openings, {**opening, "models": compared}], indent=2))
    ranks = _test_ranks(models, dataset)
    winner = per_user_metrics(ranks["winner"])["mrr"]
    table = [_row(name, found, winner, promotion) for name, found in ranks.items()]
    columns = {"user": dataset.user_ids, **{name: found.numpy() for name, found in ranks.items()}}
    pq.write_table(pa.table(columns), folder / "ranks.parquet")
    metrics = {"split": "test", "users": dataset.n_users, **ranking_metrics(ranks["winner"])}
    write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2))
    write_atomic(folder / "comparison.json", json.dumps(table, indent=2))
    return table


def split_openings(study: Study) -> list[dict[str, Any]]:
    """When and for which models (SHA-256 of their files) this study has opened the test split, oldest first."""
    file = study.folder / _OPENINGS
    openings: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return openings


def _models(study: Study, promotion: Promotion) -> dict[str, _Full]:
    """The winner's model and those of the fixed arms that lost to it, by name."""
    models = {"winner": _Full(_winner_config(study, promotion), study.folder / "final" / "model.safetensors")}
    for spec in fixed_arm_specs(study, promotion):
        file = study.trial_folder(spec.id) / "model.safetensors"
        if spec.arm and file.exists():
            models[spec.arm] = _Full(study.run_config(spec), file)
    return models


def _test_ranks(models: Mapping[str, _Full], dataset: Dataset) -> dict[str, Tensor]:
    """[users] test ranks by name: winner, the fixed arms, the references."""
    warm, device = Warm(), default_device()
    ranks = {
        name: restore(full.config, load_model(full.file), warm, device).ranks(dataset, "test", known_users=True)
        for name, full in models.items()
    }
    for name, reference in REFERENCES.items():
        ranks[name] = reference_ranks(reference.fit(dataset), dataset, "test")
    return ranks


def _row(name: str, ranks: Tensor, winner: Tensor, promotion: Promotion) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, **ranking_metrics(ranks)}
    if name == "winner":
        return {**row, "note": f"{promotion.winner}, {Architecture(promotion.best.bits).text}"}
    p_value = paired_p_value(winner, per_user_metrics(ranks)["mrr"])
    note = "all users, one worker" if name in FIXED_ARMS else "no training"
    return {**row, "p_value": p_value, "note": note}


def _decide(tested: list[Candidate]) -> Promotion:
    finished = [candidate for candidate in tested if candidate.mean is not None]
    if not finished:
        raise PromotionFailed("no re-test finished; see the reasons in trials/*/result.json and run again")
    winner = max(finished, key=lambda c: (c.mean or 0.0, c.arm in FIXED_ARMS))
    return Promotion(rule=RULE, candidates=tested, winner=winner.arm, reason=_reason(winner, finished))


def _reason(winner: Candidate, finished: Sequence[Candidate]) -> str:
    architecture = Architecture(winner.bits).text
    text = f"{winner.arm} ({architecture}) has the highest mean validation MRR, {winner.mean:.4f}, over "
    text += f"{len(winner.values)} fresh seeds"
    fixed = [candidate for candidate in finished if candidate.arm in FIXED_ARMS and candidate.arm != winner.arm]
    if fixed:
        text += "; " + ", ".join(f"{candidate.arm} has {candidate.mean:.4f}" for candidate in fixed)
    if winner.search_value is not None and winner.mean is not None:
        text += f"; during the search it scored {winner.search_value:.4f}"
    return text


def _candidate(
    study: Study, arm: str, point: Point, specs: Iterable[TrialSpec], search_value: float | None
) -> Candidate:
    trials = [study.trial(spec.id) for spec in specs]
    values = [trial.objective for trial in trials if trial.objective is not None]
    return Candidate(
        arm=arm,
        bits=point.bits,
        weights=dict(point.weights),
        trials=[trial.spec.id for trial in trials],
        values=values,
        mean=statistics.fmean(values) if values else None,
        stderr=statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        search_value=search_value,
    )


def _request(study: Study, point: Point, seed: int, fidelity: Fidelity, arm: str) -> TrialSpec:
    return study.request(make_spec(study.id, _next_number(study), "retest", point, seed, fidelity, arm)).spec


def _run(study: Study, runner: Runner, specs: Iterable[TrialSpec], on_event: OnEvent) -> None:
    """Run the trials that have no result yet."""
    waiting = {spec.id: spec for spec in specs if study.trial(spec.id).result is None}
    for spec in waiting.values():
        runner.submit(spec)
    while waiting:
        for event in runner.wait():
            on_event(event)
            if isinstance(event, DoneEvent):
                waiting.pop(event.trial_id, None)


def _next_number(study: Study) -> int:
    return max((trial.spec.number for trial in study.trials()), default=-1) + 1


def fixed_arm_specs(study: Study, promotion: Promotion) -> list[TrialSpec]:
    """The runs on all users of the fixed arms that did not win."""
    arms = [c for kind in FIXED_ARMS for c in promotion.candidates if c.arm == kind != promotion.winner]
    fidelity, first = _full_fidelity(study), _next_number(study)
    return [
        make_spec(study.id, number, "full", Point(c.bits, c.weights), study.config.seed, fidelity, c.arm)
        for number, c in enumerate(arms, first)
    ]


def _full_fidelity(study: Study) -> Fidelity:
    config = study.config
    return Fidelity(users_fraction=1.0, epochs=config.promotion.epochs or config.optimization.epochs)


def _winner_config(study: Study, promotion: Promotion) -> RunConfig:
    fidelity = _full_fidelity(study)
    return study.config.run_config(
        Architecture(promotion.best.bits).text,
        promotion.best.weights,
        study.config.seed,
        users_fraction=fidelity.users_fraction,
        epochs=fidelity.epochs,
    )


def _same_run(file: Path, config: RunConfig) -> bool:
    """Whether a run file asks for the same training; where data and caches lie does not matter."""
    try:
        found = RunConfig.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return False
    data = found.data.model_copy(update={"path": config.data.path})
    return found.model_copy(update={"data": data, "cache": config.cache}) == config
