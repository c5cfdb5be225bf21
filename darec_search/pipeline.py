"""The main job: data → search → promotion → export, resumable at every point."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from darec_search import final_models, planning, promotion, runners
from darec_search.budget import ledger
from darec_search.config import StudyConfig
from darec_search.controller import search, search_fidelities
from darec_search.controlling import controlling
from darec_search.export import export
from darec_search.fidelities import cheaper_fidelities
from darec_search.insight import write_insight
from darec_search.lease import Lease
from darec_search.promotion import Promotion
from darec_search.report import write_report
from darec_search.runners.base import Event, Runner
from darec_search.space import Point
from darec_search.study import Study
from darec_search.tracking import TRACKERS
from darec_search.tracking.base import Synced
from darec_search.tracking.mirror import Mirror
from darec_search.trial import SEARCH_STAGES, TrialSpec
from trainer.storage import reached
from trainer.training.result import RunResult
from trainer.training.warm import Warm

logger = logging.getLogger(__name__)
OnEvent = Callable[[Event], None]
_Look = Callable[[Runner, OnEvent], int]
"""Searches; returns the trials that the budget had no room for."""


class Observer(Protocol):
    """Is told how a study gets on."""

    def stage(self, text: str, runs: int = 0, done: Sequence[RunResult] = ()) -> None:
        """A new part of so many runs begins; `done` are those that an earlier start left."""
        ...

    def event(self, event: Event) -> None:
        """A run has a new row or its result."""
        ...


class Silent:
    """An observer that keeps quiet."""

    def stage(self, text: str, runs: int = 0, done: Sequence[RunResult] = ()) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Compared:
    """What a study has decided."""

    study: Study
    promotion: Promotion
    comparison: list[dict[str, Any]]
    """The final table on the test split."""


@dataclass(frozen=True)
class StudyResult(Compared):
    """What a study ended with."""

    model: Path
    """The exported model."""
    report: Path
    tracking: Synced | None
    """What MLflow holds; None without tracking or while it does not answer."""


def run(config: StudyConfig, observer: Observer | None = None) -> StudyResult:
    """Run a study to its end; on the folder of an earlier start it goes on where that stopped.

    Raises:
        BadInput: before any training, for anything the user can mend.
        Stopped: when a signal asked for it; the same call resumes.
        SearchFailed, PromotionFailed: when nothing finished that could be promoted.
    """
    observer = observer or Silent()
    with _searching(config, observer) as (study, look):
        return _finish(study, observer, look)


def compare(config: StudyConfig, observer: Observer | None = None) -> Compared:
    """The part of `run` that decides: search, re-tests, final models and test split; no export, report or MLflow.

    Raises:
        BadInput, Stopped, SearchFailed, PromotionFailed: as `run`.
    """
    observer = observer or Silent()
    with _searching(config, observer) as (study, look):
        return _compare(study, observer, look, observer.event)


def promote(study: Study, observer: Observer | None = None) -> StudyResult:
    """Promote what an existing study has found so far, without searching further.

    Raises:
        BadInput, Stopped, PromotionFailed: as `run`.
    """
    study.dataset()
    with alone(study):
        return _finish(study, observer or Silent(), lambda runner, on_event: 0)


@contextmanager
def _searching(config: StudyConfig, observer: Observer) -> Iterator[tuple[Study, _Look]]:
    """Check everything, then hold the study: its folder, and what searches it."""
    observer.stage("reading data")
    dataset = planning.open_dataset(config)
    plan = planning.check(config, dataset)
    with controlling(config) as lease:
        study = _open_study(config, plan, lease, observer)

        def look(runner: Runner, on_event: OnEvent) -> int:
            fidelities = search_fidelities(study)
            done = _done(study, lambda spec: spec.stage in SEARCH_STAGES and spec.fidelity in fidelities)
            observer.stage("search", plan.searching, done)
            return search(study, runner, on_event)

        yield study, look


def _open_study(config: StudyConfig, plan: planning.Plan, lease: Lease, observer: Observer) -> Study:
    """Build what all trials share, and open the study folder."""
    observer.stage("preparing tokens, hard negatives and backbone")
    warm = Warm()
    cheaper = {fidelity.users_fraction for fidelity in cheaper_fidelities(config)}
    with reached():
        for fraction in {config.data.search_fraction, 1.0} | cheaper:
            warm.materials(config.run_config("serial", {}, config.seed, users_fraction=fraction, epochs=1))
        return Study.open(config, plan.fingerprint, plan.layers, lease)


@contextmanager
def alone(study: Study) -> Iterator[None]:
    """Hold the lease of a study that is there already, and let it write.

    Raises:
        BadInput, LeaseLost: as `controlling`.
    """
    with controlling(study.config) as lease:
        study.lease = lease
        yield


def _finish(study: Study, observer: Observer, look: _Look) -> StudyResult:
    """Search by `look`, promote, export, report; every part that is done already is left as it is."""
    tracking = study.config.tracking
    mirror = Mirror(study, tracking.uri) if tracking.enabled else None

    def on_event(event: Event) -> None:
        study.confirm()
        observer.event(event)
        if mirror is not None:
            mirror.notify()

    if mirror is not None:
        mirror.start()
    try:
        compared = _compare(study, observer, look, on_event)
        observer.stage("export and report")
        export(study, study.folder / "best")
        study.publish("best")
        write_insight(study)
        report = write_report(study)
    finally:
        synced = mirror.close() if mirror is not None else None
    return StudyResult(study, compared.promotion, compared.comparison, study.folder / "best", report, synced)


def _compare(study: Study, observer: Observer, look: _Look, on_event: OnEvent) -> Compared:
    with runners.create(study) as runner:
        left_out = look(runner, on_event)
        decision = _promote(study, runner, observer, on_event, left_out)
    return Compared(study, decision, _train_and_test(study, decision, observer))


def _promote(study: Study, runner: Runner, observer: Observer, on_event: OnEvent, left_out: int) -> Promotion:
    champion = reigning(study)
    standing = promotion.standing(study, champion)
    tested = {spec.id for spec in standing.done}
    if left_out:
        observer.stage(f"the budget has no room for {left_out} more trials of the search: {ledger(study).text} spent")
    observer.stage("re-test with fresh seeds", standing.runs, _done(study, lambda spec: spec.id in tested))
    decision = promotion.retest(study, runner, on_event, champion, left_out)
    full = {spec.id for spec in final_models.full_specs(study, decision)}
    observer.stage("arms on all users", len(full), _done(study, lambda spec: spec.id in full))
    final_models.train_arms(study, decision, runner, on_event)
    return decision


def reigning(study: Study) -> dict[str, Point]:
    """The registry's champion as an arm of the re-test, if it comes from another study and fits this one's model."""
    tracking = study.config.tracking
    found = TRACKERS["mlflow"](study, tracking.uri).champion() if tracking.enabled else None
    if found is None or found.study == study.id or len(found.bits) != study.space.bits:
        return {}
    # λ that the config fixes at the same value stays unnamed, so that a design found twice is known to be one.
    configured = study.config.losses.model_dump()
    weights = {
        name: weight
        for name, weight in found.weights.items()
        if name in study.space.weights or weight != configured[name]
    }
    return {"champion": Point(found.bits, weights)}


def _done(study: Study, wanted: Callable[[TrialSpec], bool]) -> list[RunResult]:
    """Results that an earlier start left."""
    return [trial.result for trial in study.trials() if trial.result and wanted(trial.spec)]


def _train_and_test(study: Study, decision: Promotion, observer: Observer) -> list[dict[str, Any]]:
    # The lanes are closed by now: the final run needs what they held.
    observer.stage(f"final run on all users, {study.config.promotion.num_workers} worker(s)")
    final_models.train_winner(study, decision)
    observer.stage("test split")
    return final_models.open_test_split(study, decision)
