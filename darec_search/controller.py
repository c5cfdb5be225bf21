"""The search loop: ask a sampler, request a trial, hand it to a runner, tell the sampler.

It holds no state that the study folder lacks. Started again on a folder, it tells a fresh sampler what has finished (by
end of the trials, so in the order of the first time), submits what was asked and has no result, and goes on asking.
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from darec_search import samplers
from darec_search.runners.base import DoneEvent, Event, RowEvent, Runner
from darec_search.samplers.base import Sampler
from darec_search.space import Point, SearchSpace
from darec_search.stopping import EarlyStopping
from darec_search.study import Study, Trial, best_trial
from darec_search.trial import Fidelity, Stage, TrialSpec, make_spec
from trainer.architecture import Architecture
from trainer.errors import BadInput

logger = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]


class SearchFailed(RuntimeError):  # noqa: N818 - reads as what it is where it is raised
    """The search cannot go on, such as when every trial of the λ grid failed."""


class Stopped(KeyboardInterrupt):
    """A signal asked the study to stop; work is left and the same command resumes it."""


def search(study: Study, runner: Runner, on_event: OnEvent | None = None) -> None:
    """Run the study's search to its end.

    Args:
        study: the open study.
        runner: runs the trials; stays open.
        on_event: called with every row and result as it comes.

    Raises:
        BadInput: if `search.fixed_architecture` does not fit the model.
        SearchFailed: if no trial of the λ grid finished.
    """
    report = on_event or (lambda event: None)
    if study.config.search.strategy == "joint":
        _propose(_Stage(study, "joint", study.space, {}), runner, report)
        return
    grid = weight_grid(study)
    space = SearchSpace(study.space.layers)
    if len(grid) == 1:
        _propose(_Stage(study, "architecture", space, grid[0].weights), runner, report)
        return
    best = _run_grid(study, grid, runner, report)
    _propose(_Stage(study, "architecture", space, best.spec.weights), runner, report, known=[best])


def weight_grid(study: Study) -> list[Point]:
    """The λ grid of a staged search: every combination of levels at the fixed architecture.

    Raises:
        BadInput: if `search.fixed_architecture` does not fit the model.
    """
    try:
        bits = Architecture.parse(study.config.search.fixed_architecture, study.space.layers).bits
    except ValueError as error:
        raise BadInput(f"search.fixed_architecture: {error}") from error
    names, levels = list(study.space.weights), study.space.weights.values()
    return [Point(bits, dict(zip(names, combination, strict=True))) for combination in itertools.product(*levels)]


def search_fidelity(study: Study) -> Fidelity:
    """How much of the full training a trial of this study gets."""
    config = study.config
    return Fidelity(
        users_fraction=config.data.search_fraction, epochs=config.search.epochs or config.optimization.epochs
    )


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Stopped`, raised in the main thread; a second signal ends the process at once.

    Elsewhere than in the main thread it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[str] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for name in handlers:
            signal.signal(name, signal.SIG_DFL)
        raise Stopped(received[0])

    handlers = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:  # compiled code, such as Ray's, raises one of its own instead of what the handler raised
        raise Stopped(received[0] if received else "SIGINT") from None
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


@dataclass(frozen=True)
class _Stage:
    """A part of the search in which a sampler proposes points of `space`; `weights` are the same for all its trials."""

    study: Study
    name: Stage
    space: SearchSpace
    weights: Mapping[str, float]

    def seen(self, spec: TrialSpec) -> Point:
        """A trial as the sampler sees it."""
        return Point(spec.bits, {name: level for name, level in spec.weights.items() if name in self.space.weights})

    def trials(self) -> list[Trial]:
        """The stage's trials by number; those of an earlier config (levels, epochs, best λ) are not among them."""
        fidelity = search_fidelity(self.study)
        return [
            trial
            for trial in self.study.trials()
            if trial.spec.stage == self.name
            and trial.spec.fidelity == fidelity
            and self.seen(trial.spec) in self.space
            and trial.spec.weights == {**self.weights, **self.seen(trial.spec).weights}
        ]

    def request(self, point: Point) -> TrialSpec:
        """A fresh trial of a point; a point that has been tried gets another seed."""
        whole = Point(point.bits, {**self.weights, **point.weights})
        for seed in itertools.count(self.study.config.seed):
            spec = _spec(self.study, self.name, whole, seed)
            if not (self.study.trial_folder(spec.id) / "spec.json").exists():
                return self.study.request(spec).spec
        raise AssertionError("unreachable: there is always another seed")


def _run_grid(study: Study, grid: Sequence[Point], runner: Runner, report: OnEvent) -> Trial:
    """Run what is left of the λ grid; returns its best trial, the first of equals."""
    specs = [_spec(study, "weights", point, study.config.seed) for point in grid]
    waiting = deque(specs)
    stopping = EarlyStopping(study.config.search.early_stopping, study.config.search.objective)

    def next_spec(pending: Sequence[TrialSpec]) -> TrialSpec | None:
        while waiting:
            spec = waiting.popleft()
            trial = study.request(spec.model_copy(update={"number": _next_number(study)}))
            if trial.result is None:
                return trial.spec
            stopping.ended(trial)
        return None

    _drive(study, runner, report, next_spec, lambda trial: None, stopping)
    trials = [study.trial(spec.id) for spec in specs]
    best = best_trial(trials, study.config.search.objective)
    if best is None:
        reasons = sorted({trial.result.reason or trial.status for trial in trials if trial.result})
        raise SearchFailed(f"no trial of the λ grid finished: {'; '.join(reasons)}")
    logger.info("best weights %s, validation MRR %.4f", best.spec.weights, best.objective)
    return best


def _propose(stage: _Stage, runner: Runner, report: OnEvent, known: Sequence[Trial] = ()) -> None:
    """Let the sampler propose `search.trials` trials of a stage, of which earlier starts have done some.

    Args:
        stage: the stage.
        runner: runs the trials.
        report: called with every event.
        known: finished trials of other stages that the sampler is told first.
    """
    config, mine = stage.study.config.search, stage.trials()
    sampler = samplers.create(config.sampler, stage.space, stage.study.config.seed, **config.sampler_options)
    ended = [(trial.result.cost.ended_at, trial.spec.number, trial) for trial in mine if trial.result]
    stopping = EarlyStopping(config.early_stopping, config.objective, lambda: sampler.history.means()[sampler.best()])
    for trial in [*known, *(trial for _, _, trial in sorted(ended, key=lambda entry: entry[:2]))]:
        _tell(stage, sampler, trial)
        stopping.ended(trial)
    unfinished = deque(trial.spec for trial in mine if trial.result is None)
    left = config.trials - len(mine)

    def next_spec(pending: Sequence[TrialSpec]) -> TrialSpec | None:
        nonlocal left
        if unfinished:
            return unfinished.popleft()
        if left <= 0:
            return None
        left -= 1
        return stage.request(sampler.ask([stage.seen(spec) for spec in pending]))

    _drive(stage.study, runner, report, next_spec, lambda trial: _tell(stage, sampler, trial), stopping)


def _drive(
    study: Study,
    runner: Runner,
    report: OnEvent,
    next_spec: Callable[[Sequence[TrialSpec]], TrialSpec | None],
    done: Callable[[Trial], None],
    stopping: EarlyStopping,
) -> None:
    """Keep the runner's slots, and `search.ahead` trials more, filled until `next_spec` has none left."""
    pending: dict[str, TrialSpec] = {}
    while True:
        while len(pending) < runner.slots + study.config.search.ahead:
            spec = next_spec(list(pending.values()))
            if spec is None:
                break
            runner.submit(spec)
            pending[spec.id] = spec
        if not pending:
            return
        for event in runner.wait():
            report(event)
            spec = pending.get(event.trial_id)
            if spec is None:
                continue
            trial = Trial(spec, event.result if isinstance(event, DoneEvent) else None, study.trial_folder(spec.id))
            if isinstance(event, RowEvent):
                stop = stopping.look(trial, event.row)
                if stop is not None:
                    runner.stop(spec.id, stop)
            else:
                del pending[spec.id]
                stopping.ended(trial)
                done(trial)


def _tell(stage: _Stage, sampler: Sampler, trial: Trial) -> None:
    point, (value, stderr) = stage.seen(trial.spec), trial.estimate(stage.study.config.search.objective)
    if value is not None and math.isfinite(value):
        sampler.tell(point, value, stderr)
    else:
        sampler.tell_failed(point, (trial.result and trial.result.reason) or trial.status)


def _spec(study: Study, stage: Stage, point: Point, seed: int) -> TrialSpec:
    return make_spec(study.id, _next_number(study), stage, point, seed, search_fidelity(study))


def _next_number(study: Study) -> int:
    return max((trial.spec.number for trial in study.trials()), default=-1) + 1
