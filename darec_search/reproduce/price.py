"""What a reproduction would take, from real steps of every method's smallest and largest model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from darec_search.reproduce.chains import Chain
from darec_search.reproduce.reproduce import Plan
from darec_search.reproduce.setup import changes_of
from trainer.config import RunConfig
from trainer.threads import of_threads
from trainer.training.probe import Probe, Range, probe
from trainer.training.warm import Warm


@dataclass(frozen=True)
class Part:
    """One method on one dataset.

    Args:
        dataset: its name.
        method: its name.
        trials: trainings of its search.
        trial_s: seconds of one.
        trainings: others.
        training_s: seconds of one, in the mean.
        hours: of all.
    """

    dataset: str
    method: str
    trials: int
    trial_s: Range
    trainings: int
    training_s: Range
    hours: Range


@dataclass(frozen=True)
class Price:
    """Of a reproduction.

    Args:
        parts: by dataset and method.
        hours: of all trainings, one after the other.
        wall_hours: with so many at a time.
        lanes: how many.
        device: where it was timed.
        cost: of the hours, where an hour has a price.
    """

    parts: tuple[Part, ...]
    hours: Range
    wall_hours: Range
    lanes: int
    device: str
    cost: Range | None

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def price(planned: Plan, lanes: int, per_hour: float | None = None) -> Price:
    """Time every method and add up; trains nothing, but builds what all trainings share.

    Args:
        planned: the reproduction.
        lanes: trainings at a time.
        per_hour: price of an hour of a training's CPUs and GPUs.

    Raises:
        BadInput: if dataset or backbone cannot be used.
    """
    warm = Warm()
    timed = [
        _part(chain, warm, planned.scale.cpus) for dataset in planned.datasets for chain in dataset.chains.values()
    ]
    hours = _sum([part.hours for part, _ in timed])
    cost = None if per_hour is None else _times(hours, per_hour)
    parts = tuple(part for part, _ in timed)
    # A method's trials follow each other, so that a short plan cannot fill many lanes; that is not counted.
    return Price(parts, hours, _times(hours, 1 / lanes), lanes, next((device for _, device in timed), "cpu"), cost)


def _part(chain: Chain, warm: Warm, threads: int) -> tuple[Part, str]:
    setup, method = chain.setup, chain.method
    points = chain.search.extremes()
    with of_threads(threads):
        probes = [probe(setup.config(method, changes_of(method, point)), warm) for point in points]
    trial = _seconds(chain.search.config(points[0]), probes)
    finals = [_seconds(setup.config(method, *final.changes), probes) for final in chain.finals]
    seeds = len(setup.scale.seeds)
    of_all = _sum([_times(trial, chain.search.trials), *(_times(final, seeds) for final in finals)])
    mean = _times(_sum(finals), 1 / len(finals))
    count = seeds * len(finals)
    part = Part(
        setup.name, method.name, chain.search.trials, trial, count, mean, _times(of_all, 1 / 3600)
    )  # fmt: skip
    return part, probes[0].device


def _seconds(config: RunConfig, probes: Sequence[Probe]) -> Range:
    """Of a training: from the smallest model and the epochs that patience leaves at least to the largest and all."""
    epochs, patience = config.optimization.epochs, config.optimization.patience
    fewest = epochs if patience is None else min(epochs, 1 + patience)

    def seconds(found: Probe, count: float, step_s: float) -> float:
        fraction = config.data.users_fraction
        evaluated = fraction if config.data.validation_users == "trained" else 1.0
        epoch = found.steps_per_epoch * fraction * step_s + found.evaluation_s * evaluated + found.save_s
        return found.begin_s + count * epoch

    small, large = probes[0], probes[-1]
    ends = [seconds(small, fewest, small.step_s.middle), seconds(large, epochs, large.step_s.middle)]
    middle = [seconds(found, (fewest + epochs) / 2, found.step_s.middle) for found in probes]
    return Range(min(ends), sum(middle) / len(middle), max(ends))


def _sum(ranges: Sequence[Range]) -> Range:
    return Range(*(sum(getattr(one, end) for one in ranges) for end in ("low", "middle", "high")))


def _times(one: Range, factor: float) -> Range:
    return Range(one.low * factor, one.middle * factor, one.high * factor)
