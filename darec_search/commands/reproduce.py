"""`reproduce`: the paper's tables and figures, measured."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from darec_search.commands.output import console, errors, print_json, say
from trainer.errors import BadInput

if TYPE_CHECKING:
    from darec_search.reproduce.executors import Executor
    from darec_search.reproduce.reproduce import Plan
    from darec_search.reproduce.scales import Scale


def reproduce(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Search, train, compare and draw; the exit code."""
    from darec_search.controller import stopping_on_signals
    from darec_search.reproduce import reproduce as reproducing
    from darec_search.reproduce.console import ConsoleObserver, print_price
    from darec_search.reproduce.experiments import EXPERIMENTS
    from darec_search.reproduce.price import price
    from darec_search.reproduce.scales import SCALES
    from darec_search.tracking.mirror import mirrored

    if parsed.what != "all" and parsed.what not in EXPERIMENTS:
        raise BadInput(f"reproduce {parsed.what}: choose one of all, {', '.join(EXPERIMENTS)}")
    scale = SCALES[parsed.scale]
    out = parsed.out or Path("runs/reproduce") / scale.name
    experiments = list(EXPERIMENTS.values()) if parsed.what == "all" else [EXPERIMENTS[parsed.what]]
    only = [name.strip() for name in parsed.only.split(",")] if parsed.only else []
    planned = reproducing.plan(experiments, parsed.data, scale, out.absolute(), only, parsed.set)
    for variant in {name for dataset in planned.datasets for name in dataset.left_out}:
        errors.print(f"{variant}: left out, the backbone has fewer layers", markup=False)
    if parsed.dry_run:
        found = price(planned, _lanes(parsed, scale), parsed.price_per_hour)
        if parsed.json:
            print_json(found.document())
        else:
            print_price(console, found)
        return 0
    reproducing.check(planned)
    shown, done = errors if parsed.json else console, reproducing.verify(planned)
    with (
        stopping_on_signals(),
        mirrored(out, parsed.mlflow) as changed,
        closing(_executor(parsed, planned)) as executor,
        ConsoleObserver(shown, planned.trainings, done, changed) as observer,
    ):
        results = reproducing.run(planned, executor, observer)
    if parsed.json:
        print_json(results)
    else:
        say(f"{out / 'results.md'}")
    return 0 if reproducing.complete(planned) else 1


def _lanes(parsed: argparse.Namespace, scale: Scale) -> int:
    """Trainings at a time: as asked, else as many as this machine has room for."""
    import os

    import torch

    if parsed.lanes is not None:
        if parsed.lanes < 1:
            raise BadInput(f"--lanes {parsed.lanes}: must be at least 1")
        return int(parsed.lanes)
    if parsed.runner == "local":
        return 1
    rooms = [(os.cpu_count() or 1) // scale.cpus]
    rooms += [torch.cuda.device_count() // scale.gpus] if scale.gpus else []
    return max(1, min(rooms))


def _executor(parsed: argparse.Namespace, planned: Plan) -> Executor:
    from darec_search.reproduce.executors import LocalExecutor

    scale = planned.scale
    if parsed.runner == "local":
        return LocalExecutor(scale.cpus)
    import os

    from darec_search.config import StudyConfig
    from darec_search.runners.tasks import RayExecutor

    resources = {
        "address": parsed.address,
        "lanes": _lanes(parsed, scale),
        "cpus_per_lane": scale.cpus,
        "gpus_per_lane": scale.gpus,
    }
    data = {"path": planned.datasets[0].setup.data}
    config = StudyConfig.model_validate({"name": "reproduce", "data": data, "resources": resources})
    joins = parsed.address is not None or "RAY_ADDRESS" in os.environ
    return RayExecutor(config, fill=joins and parsed.lanes is None)
