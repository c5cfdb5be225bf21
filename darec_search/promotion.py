"""From the search's best points to one model.

1. The best few points of the search and the two fixed arms are trained again on the search data with fresh seeds: the
   best of many noisy trials is often luck, so search-time scores do not count in the choice.
2. The highest mean wins; a fixed arm wins ties.
3. The winner and the fixed arms are trained on all users.
4. The test split is opened once, for all of them and the two references without training.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats
from torch import Tensor

from darec_search.controller import search_fidelity
from darec_search.runners.base import DoneEvent, Event, Runner
from darec_search.runners.final import run_final
from darec_search.space import Point
from darec_search.study import Study, Trial
from darec_search.trial import Fidelity, TrialSpec, make_spec
from trainer.architecture import FIXED_ARMS, Architecture
from trainer.baselines import REFERENCES, reference_ranks
from trainer.config import RunConfig, Section
from trainer.data.dataset import Dataset
from trainer.inference import restore
from trainer.metrics import per_user_metrics, ranking_metrics
from trainer.training.model_file import load_model
from trainer.training.result import RunResult, write_atomic
from trainer.training.warm import Warm

RULE = "highest mean validation MRR over fresh seeds on the search data; a fixed arm wins ties"
_FRESH_SEEDS = 1000
"""Distance of the re-tests' seeds from those of the search."""

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
    result: RunResult
    folder: Path


def candidates(study: Study) -> dict[str, Point]:
    """Arms of the re-test by name: the best points of the search, then the fixed arms at the best point's weights.

    Raises:
        PromotionFailed: if no trial of the search finished.
    """
    ranked = sorted(search_values(study).items(), key=lambda entry: -entry[1])
    if not ranked:
        failed = [trial.result.reason for trial in study.trials() if trial.result and trial.result.reason]
        raise PromotionFailed(f"no trial of the search finished{': ' + failed[-1] if failed else ''}")
    best = [point for point, _ in ranked[: study.config.promotion.candidates]]
    arms = {f"best-{place}": point for place, point in enumerate(best, 1)}
    for kind in FIXED_ARMS:
        point = Point(Architecture.uniform(study.space.layers, kind).bits, best[0].weights)
        # A fixed arm that the search found by itself keeps its own name.
        arms = {arm: other for arm, other in arms.items() if other != point}
        arms[kind] = point
    return arms


def search_values(study: Study) -> dict[Point, float]:
    """Mean validation MRR of every point that the search finished at its own fidelity."""
    values: dict[Point, list[float]] = defaultdict(list)
    fidelity = search_fidelity(study)
    for trial in study.trials():
        in_search = trial.spec.stage not in ("retest", "full")
        if in_search and trial.spec.fidelity == fidelity and trial.objective is not None:
            values[trial.spec.point].append(trial.objective)
    return {point: statistics.fmean(found) for point, found in values.items()}


def retest(study: Study, runner: Runner, on_event: OnEvent) -> Promotion:
    """Test the candidates again and choose; writes `promotion.json`. Resumable: finished re-tests are not repeated.

    Raises:
        PromotionFailed: if no trial of the search, or no re-test, finished.
    """
    arms = candidates(study)
    fidelity = search_fidelity(study)
    seeds = [study.config.seed + _FRESH_SEEDS + repeat for repeat in range(study.config.promotion.repeats)]
    specs = {
        arm: [_request(study, "retest", point, seed, fidelity, arm) for seed in seeds] for arm, point in arms.items()
    }
    # Seed by seed, so that an interrupted re-test has compared all arms equally.
    _run(study, runner, [specs[arm][place] for place in range(len(seeds)) for arm in arms], on_event)
    found = search_values(study)
    promotion = _decide([_candidate(study, arm, point, specs[arm], found.get(point)) for arm, point in arms.items()])
    write_atomic(study.folder / "promotion.json", promotion.model_dump_json(indent=2))
    logger.info("%s", promotion.reason)
    return promotion


def train_fixed_arms(study: Study, promotion: Promotion, runner: Runner, on_event: OnEvent) -> None:
    """Train the fixed arms that did not win on all users, side by side on the runner; their models are kept."""
    fidelity = _full_fidelity(study)
    points = {candidate.arm: candidate for candidate in promotion.candidates}
    specs = [
        _request(study, "full", Point(points[arm].bits, points[arm].weights), study.config.seed, fidelity, arm)
        for arm in FIXED_ARMS
        if arm != promotion.winner
    ]
    _run(study, runner, specs, on_event)


def train_winner(study: Study, promotion: Promotion) -> RunResult:
    """Train the winner on all users with `promotion.num_workers` Ray Train workers; the model goes to `final/`.

    A finished final run is not repeated.

    Raises:
        PromotionFailed: if the run did not finish.
    """
    folder = study.folder / "final"
    config = _winner_config(study, promotion)
    text = config.model_dump_json(indent=2)
    done = folder / "result.json"
    if done.exists() and _same_run(folder / "run.json", config):
        result = RunResult.model_validate_json(done.read_text(encoding="utf-8"))
        if result.status == "finished" and (folder / "model.safetensors").exists():
            return result
    for stale in ("result.json", "metrics.json", "comparison.json"):
        (folder / stale).unlink(missing_ok=True)
    write_atomic(folder / "run.json", text)
    result = run_final(study.config, config, folder)
    if result.status != "finished":
        raise PromotionFailed(f"the final run ended as {result.status}: {result.reason}; run again to try it once more")
    return result


def open_test_split(study: Study, promotion: Promotion) -> list[dict[str, Any]]:
    """Open the test split once and compare all models on it; writes `final/metrics.json` and `comparison.json`.

    Returns:
        Rows of the final table: name, MRR, Recall@10, NDCG@10, and where it is not the winner's row the two-sided
        p-value of a paired t-test of reciprocal ranks against the winner.
    """
    folder = study.folder / "final"
    if (folder / "comparison.json").exists():
        rows: list[dict[str, Any]] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        return rows
    config = _winner_config(study, promotion)
    dataset = Dataset.open(Path(config.data.path))
    opening = {"time": time.time(), "reason": "final comparison", "fingerprint": dataset.fingerprint}
    write_atomic(folder / "test_opened.json", json.dumps(opening, indent=2))
    ranks = _test_ranks(study, promotion, dataset)
    winner = per_user_metrics(ranks["winner"])["mrr"].numpy()
    table = [_row(name, found, winner, promotion) for name, found in ranks.items()]
    columns = {"user": dataset.user_ids, **{name: found.numpy() for name, found in ranks.items()}}
    pq.write_table(pa.table(columns), folder / "ranks.parquet")
    metrics = {"split": "test", "users": dataset.n_users, **ranking_metrics(ranks["winner"])}
    write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2))
    write_atomic(folder / "comparison.json", json.dumps(table, indent=2))
    return table


def _test_ranks(study: Study, promotion: Promotion, dataset: Dataset) -> dict[str, Tensor]:
    """[users] test ranks by name: winner, the fixed arms, the references."""
    warm = Warm()
    models = {"winner": _Full(_winner_config(study, promotion), _read_result(study), study.folder / "final")}
    fidelity = _full_fidelity(study)
    for trial in study.trials():
        finished = trial.spec.stage == "full" and trial.spec.fidelity == fidelity and trial.status == "finished"
        if finished and trial.spec.arm and trial.result and _of_this_promotion(trial, promotion):
            models[trial.spec.arm] = _Full(study.run_config(trial.spec), trial.result, trial.folder)
    ranks = {
        name: restore(full.config, load_model(full.folder / "model.safetensors"), warm).ranks(
            dataset, "test", known_users=True
        )
        for name, full in models.items()
    }
    for name, reference in REFERENCES.items():
        ranks[name] = reference_ranks(reference.fit(dataset), dataset, "test")
    return ranks


def _of_this_promotion(trial: Trial, promotion: Promotion) -> bool:
    return any(c.bits == trial.spec.bits and c.weights == trial.spec.weights for c in promotion.candidates)


def _row(name: str, ranks: Tensor, winner: NDArray[np.float32], promotion: Promotion) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, **ranking_metrics(ranks)}
    if name == "winner":
        return {**row, "note": f"{promotion.winner}, {Architecture(promotion.best.bits).text}"}
    own = per_user_metrics(ranks)["mrr"].numpy()
    p_value = float(stats.ttest_rel(winner, own).pvalue) if len(own) > 1 and (winner != own).any() else math.nan
    note = "all users, one worker" if name in FIXED_ARMS else "no training"
    return {**row, "p_value": None if math.isnan(p_value) else p_value, "note": note}


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


def _request(
    study: Study, stage: Literal["retest", "full"], point: Point, seed: int, fidelity: Fidelity, arm: str
) -> TrialSpec:
    number = max((trial.spec.number for trial in study.trials()), default=-1) + 1
    return study.request(make_spec(study.id, number, stage, point, seed, fidelity, arm)).spec


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
    return file.exists() and json.loads(file.read_text(encoding="utf-8")) == config.model_dump(mode="json")


def _read_result(study: Study) -> RunResult:
    return RunResult.model_validate_json((study.folder / "final" / "result.json").read_text(encoding="utf-8"))
