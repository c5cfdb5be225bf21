"""The search loop: ask a sampler, request a trial, hand it to a runner, tell the sampler.

It holds no state that the study folder lacks. Started again on a folder, it submits what was asked and has no result,
tells a fresh sampler what has finished, in the order of the first time, and goes on asking (`asking.py`).

`staged`: λ at a fixed architecture, then bits at the best λ, then, if wanted, λ again at the best bits (`weights.py`).
`joint`: one sampler for bits and λ.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from darec_search import warm_start, weights
from darec_search.asking import Listed, Proposed, Proposing, Source
from darec_search.fidelities import cheaper_fidelities, trial_fidelity
from darec_search.lease import LeaseLost
from darec_search.runners.base import DoneEvent, Event, RowEvent, Runner
from darec_search.space import Point, SearchSpace
from darec_search.study import Study, Trial
from darec_search.trial import Fidelity, TrialSpec
from trainer.architecture import Architecture
from trainer.errors import BadInput

logger = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]
_POLL_S = 0.05
"""How long to wait for the sampler before looking for results again."""


class SearchFailed(RuntimeError):  # noqa: N818 - reads as what it is where it is raised
    """The search cannot go on, such as when every trial of a first λ failed."""


class Stopped(KeyboardInterrupt):
    """A signal asked the study to stop; work is left and the same command resumes it."""


def search(study: Study, runner: Runner, on_event: OnEvent | None = None) -> int:
    """Run the study's search to its end, or to that of its budget.

    Args:
        study: the open study.
        runner: runs the trials; stays open.
        on_event: called with every row and result as it comes.

    Returns:
        Trials that `budget.hours` had no room for.

    Raises:
        BadInput: if `search.fixed_architecture` does not fit the model, or a study of `search.warm_start` cannot be
            used.
        SearchFailed: if no trial that was to find λ finished.
    """
    report = on_event or (lambda event: None)
    warm_start.old_studies(study)  # what cannot be used is said before anything is spent
    width = runner.slots + study.config.search.ahead
    if study.config.search.strategy == "joint":
        with Proposed(Proposing(study, "joint", study.space, {}, search_fidelities(study)), width) as joint:
            return _drive(runner, width, report, joint, study)
    found, known, left_out = _first_weights(study, runner, report)
    part = Proposing(study, "architecture", SearchSpace(study.space.layers), found, search_fidelities(study))
    with Proposed(part, width, known) as proposed:
        left_out += _drive(runner, width, report, proposed, study)
        again = study.config.search.weights_again and known
        architecture = proposed.best().bits if again else None
    if architecture is not None:
        left_out += _search_weights(study, Point(architecture, found), runner, report)[1]
    return left_out


def search_fidelity(study: Study) -> Fidelity:
    """How much of the full training a trial of this study gets."""
    return trial_fidelity(study.config)


def search_fidelities(study: Study) -> tuple[Fidelity, ...]:
    """`search_fidelity`, and the cheaper ones that the sampler may choose, dearest first."""
    return (search_fidelity(study), *cheaper_fidelities(study.config))


def _first_weights(study: Study, runner: Runner, report: OnEvent) -> tuple[Mapping[str, float], list[Trial], int]:
    """λ for the search of bits, the finished trials that have it, and how many the budget had no room for."""
    try:
        bits = Architecture.parse(study.config.search.fixed_architecture, study.space.layers).bits
    except ValueError as error:
        raise BadInput(f"search.fixed_architecture: {error}") from error
    start = Point(bits, weights.start(study.config))
    if not weights.searched(study.config):
        return start.weights, [], 0
    trials, left_out = _search_weights(study, start, runner, report)
    best = weights.best(study, trials)
    if best is None:
        reasons = sorted({trial.result.reason or trial.status for trial in trials if trial.result})
        raise SearchFailed(f"no trial of the loss weights finished: {'; '.join(reasons)}")
    known = [trial for trial in trials if trial.spec.point == best and trial.objective is not None]
    return best.weights, known, left_out


def _search_weights(study: Study, start: Point, runner: Runner, report: OnEvent) -> tuple[list[Trial], int]:
    """Search λ at the architecture of `start`; returns all its trials, and how many the budget had no room for."""
    trials: list[Trial] = []
    left_out = 0
    at = start
    for names in weights.passes(study.config):
        source = Listed(study, "weights", search_fidelity(study), weights.runs(study.config, at, names))
        left_out += _drive(runner, runner.slots + study.config.search.ahead, report, source, study)
        trials += source.asked()
        at = weights.best(study, trials) or at
    logger.info("best weights of %s: %s", Architecture(at.bits).text, dict(at.weights))
    return trials, left_out


def _drive(runner: Runner, width: int, report: OnEvent, source: Source, study: Study) -> int:
    """Keep `width` trials under way until the source has none left; how many the budget had no room for."""
    running: dict[str, TrialSpec] = {}
    while True:
        while len(running) < width:
            spec = source.next(None if runner.in_process or not running else _POLL_S)
            if spec is None:
                break
            runner.submit(spec)
            running[spec.id] = spec
        if not running:
            return source.left_out
        for event in runner.wait(0 if source.thinking else None):
            report(event)
            spec = running.get(event.trial_id)
            if spec is None:
                continue
            trial = Trial(spec, event.result if isinstance(event, DoneEvent) else None, study.trial_folder(spec.id))
            if isinstance(event, RowEvent):
                stop = source.stopping.look(trial, event.row)
                if stop is not None:
                    runner.stop(spec.id, stop)
            else:
                del running[spec.id]
                source.done(trial)


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
    except LeaseLost:
        raise
    except KeyboardInterrupt:  # compiled code, such as Ray's, raises one of its own instead of what the handler raised
        raise Stopped(received[0] if received else "SIGINT") from None
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
