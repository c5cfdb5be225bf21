"""What a study would take and cost, from real steps of its own model and data on this machine."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from darec_search.budget import final_held, unit, units
from darec_search.config import StudyConfig
from darec_search.fidelities import full_fidelity, trial_fidelity
from darec_search.planning import Plan
from darec_search.trial import Fidelity
from darec_search.winner import seeds_each
from trainer.config import RunConfig
from trainer.device import default_device
from trainer.errors import BadInput
from trainer.threads import of_threads
from trainer.training.attempts import Held
from trainer.training.memory import is_out_of_memory, out_of_memory_reason
from trainer.training.probe import Probe, Range, probe
from trainer.training.warm import Warm

_RESULT_BYTES, _ROW_BYTES = 4_096, 500
"""Of a trial's files without its curve; of a row of its curve, which stands there twice."""
_RANKS = 20_000
"""Users whose ranks a trial keeps at most."""
_SMALL_FILES = 1_000_000


@dataclass(frozen=True)
class Stage:
    """A part of a study.

    Args:
        name: what it is.
        trainings: fewest and most.
        seconds: of one training.
        wall_hours: of all, on the lanes or workers that it has.
        hours: GPU-hours or CPU-hours of all.
    """

    name: str
    trainings: tuple[int, int]
    seconds: Range
    wall_hours: Range
    hours: Range


@dataclass(frozen=True)
class Estimate:
    """What a study would take.

    Args:
        probe: what was measured.
        stages: parts of the study, in order.
        wall_hours: of the whole.
        unit: of the hours.
        hours: of the whole.
        price: of an hour, where one is given.
        currency: of the cost.
        limit: `budget.hours`.
        disk_bytes: of the study folder when it is largest: checkpoints, results and models.
        notes: where the ranges come from, and what else to know.
    """

    probe: Probe
    stages: tuple[Stage, ...]
    wall_hours: Range
    unit: str
    hours: Range
    price: float | None
    currency: str
    limit: float | None
    disk_bytes: Range
    notes: tuple[str, ...]

    @property
    def cost(self) -> Range | None:
        """Of the whole, where a price is given."""
        return None if self.price is None else _times(self.hours, self.price)

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {**asdict(self), "cost": None if self.cost is None else asdict(self.cost)}


def measured(config: StudyConfig, plan: Plan) -> Estimate:
    """Time a trial of the study's search on this machine and say what all of it would take; writes no study folder.

    Raises:
        BadInput: if dataset or backbone cannot be used, or a step does not fit the memory.
    """
    fidelity = trial_fidelity(config)
    run = config.run_config("serial", {}, config.seed, users_fraction=fidelity.users_fraction, epochs=fidelity.epochs)
    threads = max(1, int(config.resources.each.cpus))
    with of_threads(threads if config.resources.runner == "ray" else torch.get_num_threads()):
        found = _probe(run, plan)
    return estimate(config, plan, found)


def estimate(config: StudyConfig, plan: Plan, found: Probe) -> Estimate:
    """What a study of this size would take if its steps take what was measured."""
    stages = _stages(config, plan, found)
    hours, wall = (_sum([getattr(stage, name) for stage in stages]) for name in ("hours", "wall_hours"))
    return Estimate(
        probe=found,
        stages=stages,
        wall_hours=wall,
        unit=unit(config),
        hours=hours,
        price=config.budget.price_per_hour,
        currency=config.budget.currency,
        limit=config.budget.hours,
        disk_bytes=_disk(config, plan, found, stages),
        notes=_notes(config, found),
    )


def _probe(run: RunConfig, plan: Plan) -> Probe:
    try:
        return probe(run, Warm())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise BadInput(out_of_memory_reason(error, run, default_device(), plan.items, 1)) from error


def _stages(config: StudyConfig, plan: Plan, found: Probe) -> tuple[Stage, ...]:
    on_a_lane = 1 / config.resources.workers_per_lane
    alone, all_users = (_training(config, found, fidelity(config)) for fidelity in (trial_fidelity, full_fidelity))
    trial, full = _times(alone, on_a_lane), _times(all_users, on_a_lane)
    searched = trial
    if config.search.early_stopping != "none":
        # What it saves pays for more trials: it makes single trials shorter, not the search.
        shortest = _training(config, found, trial_fidelity(config), epochs=1).low * on_a_lane
        searched = Range(shortest, trial.middle, trial.high)
    arms = config.promotion.most_arms
    what = "bits and λ" if config.search.strategy == "joint" else "bits"
    parts = (
        ("search for λ", (plan.weight_trials, plan.weight_trials), trial, searched),
        (f"search for {what}", (plan.search_trials, plan.search_trials), trial, searched),
        ("search for λ again", (0, plan.weights_again_trials), trial, searched),
        ("re-tests", (arms * seeds_each(arms, plan.retests), plan.retests), trial, trial),
        ("arms on all users", (plan.full_runs - 2, plan.full_runs - 1), full, full),
    )
    slots, lane = config.resources.slots, config.resources.held
    on_lanes = [_stage(config, *part, slots, lane) for part in parts if part[1][1]]
    workers = 1 if config.resources.runner == "local" else config.promotion.num_workers
    shared = _times(all_users, 1 / workers)
    return (*on_lanes, _stage(config, "winner on all users", (1, 1), shared, shared, 1, final_held(config)))


def _stage(
    config: StudyConfig, name: str, trainings: tuple[int, int], seconds: Range, single: Range, slots: int, held: Held
) -> Stage:
    """A part of so many trainings, which take `seconds` on the whole; a single one may take what `single` says."""
    fewest, most = trainings
    counts = Range(fewest, (fewest + most) / 2, most)
    hours = _times(_product(counts, seconds), units(config, held) / 3600)
    waves = Range(*(math.ceil(count / slots) for count in (counts.low, counts.middle, counts.high)))
    return Stage(name, trainings, single, _times(_product(waves, seconds), 1 / 3600), hours)


def _training(config: StudyConfig, found: Probe, fidelity: Fidelity, epochs: int | None = None) -> Range:
    """Seconds of a training at a fidelity; at the fewest with the epochs that patience leaves."""
    timed = trial_fidelity(config)
    scale = fidelity.users_fraction / timed.users_fraction
    steps = found.steps_per_epoch * scale
    evaluation = found.evaluation_s * (1.0 if config.data.validation_users == "all" else scale)
    patience = config.optimization.patience
    most = epochs or fidelity.epochs
    fewest = most if patience is None else min(most, 1 + patience)
    each = found.step_s

    def seconds(count: float, step: float) -> float:
        return found.begin_s + count * (steps * step + evaluation + found.save_s)

    return Range(seconds(fewest, each.low), seconds((fewest + most) / 2, each.middle), seconds(most, each.high))


def _disk(config: StudyConfig, plan: Plan, found: Probe, stages: tuple[Stage, ...]) -> Range:
    """Checkpoints of trainings under way (two each while one is written), results, models and export."""
    epochs = trial_fidelity(config).epochs
    a_result = _RESULT_BYTES + 2 * _ROW_BYTES * epochs + 4 * min(plan.users, _RANKS)
    fewest, most = (sum(stage.trainings[end] for stage in stages) for end in (0, 1))
    models = (plan.full_runs + 1) * found.model_bytes + found.backbone_bytes + _SMALL_FILES
    under_way = config.resources.slots * found.checkpoint_bytes
    low, high = under_way + fewest * a_result + models, 2 * under_way + most * a_result + models
    return Range(low, (low + high) / 2, high)


def _notes(config: StudyConfig, found: Probe) -> tuple[str, ...]:
    resources, on_gpu = config.resources, found.device.startswith("cuda")
    from_epochs = []
    if config.optimization.patience is not None:
        from_epochs.append("the epochs that optimization.patience leaves")
    if config.search.early_stopping != "none":
        from_epochs.append("trials that early stopping ends after an epoch")
    where = "; ".join(["the shortest and the longest of an epoch's first batches", *from_epochs])
    notes = [f"ranges: {where}; re-tests from one of each arm to all that promotion allows"]
    if resources.gpus_per_lane > 0 and not on_gpu:
        notes.append(
            "timed on this machine's CPU, while lanes have GPUs: times, hours and memory are not theirs; give the "
            "command on a machine with such a GPU"
        )
    elif resources.runner == "ray" and resources.address:
        notes.append("timed on this machine; lanes on other machines may be faster or slower")
    if resources.slots > 1 and not on_gpu:
        notes.append("timed alone on this machine; lanes side by side share its memory bandwidth")
    if max(config.promotion.num_workers, resources.workers_per_lane) > 1:
        notes.append("timed with one worker; several are taken to share a training's work evenly")
    if config.adds_prior:
        notes.append("timed without the prior from counts, which the final model has")
    notes.append("starting lanes and the sampler's thinking are not counted")
    return tuple(notes)


def _sum(ranges: list[Range]) -> Range:
    return Range(*(math.fsum(getattr(one, end) for one in ranges) for end in ("low", "middle", "high")))


def _times(one: Range, factor: float) -> Range:
    return Range(one.low * factor, one.middle * factor, one.high * factor)


def _product(one: Range, other: Range) -> Range:
    return Range(one.low * other.low, one.middle * other.middle, one.high * other.high)
