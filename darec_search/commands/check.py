"""`check`: what a study or run file would do, without doing it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from darec_search.commands.output import console, print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from darec_search.config import StudyConfig
    from darec_search.estimate import Estimate
    from darec_search.findings import Findings
    from darec_search.planning import Plan

    Pricing = Callable[[StudyConfig, Plan], Estimate]


def check(parsed: argparse.Namespace, rest: list[str], priced: Pricing | None = None) -> None:
    """Validate a study or run file; `priced` tells what a study would cost."""
    from darec_search.config import read_yaml
    from darec_search.runfile import is_run_file

    if is_run_file(read_yaml(parsed.study)):
        _check_runs(parsed)
    else:
        _check_study(parsed, priced)


def _check_study(parsed: argparse.Namespace, priced: Pricing | None) -> None:
    from dataclasses import asdict

    from darec_search import planning
    from darec_search.findings import Findings

    config = load_named(parsed)
    found = Findings()
    dataset = found.collect(lambda: planning.open_dataset(config))
    layers = planning.inspect(config, dataset, found)
    if _incomplete(parsed, found) or dataset is None or layers is None:
        return
    plan = planning.size(config, dataset, layers)
    if parsed.json:
        estimate = {"estimate": priced(config, plan).document()} if priced else {}
        print_json({**asdict(plan), "runs": plan.runs, "folder": config.location, "missing": [], **estimate})
        return
    say(f"{parsed.study} is valid. It would run, in {config.location}:")
    if plan.weight_trials:
        way = {"grid": "in a grid", "one_at_a_time": "one weight at a time"}[config.search.weight_search]
        say(f"  {plan.weight_trials} trials for λ, {way}, at the architecture {config.search.fixed_architecture}")
    say(
        f"  {plan.search_trials} trials proposed by {config.search.sampler}, of {plan.points:,} points "
        f"({plan.layers} DALayers)"
    )
    for cheaper in plan.cheaper:
        say(
            f"  or more, where it chooses cheaper ones: {cheaper.epochs} epochs on {cheaper.users:,} users count "
            f"{cheaper.share:.2f} of a trial"
        )
    for old in plan.warm_start:
        what = [f"{old.results} trials as results"] if old.results else []
        why = f" (its task differs in {', '.join(old.differs)})" if old.differs else ""
        what += [f"{old.related} trials as prior knowledge{why}"] if old.related else []
        say(f"  starting from {old.folder}: {' and '.join(what)}")
    if plan.weights_again_trials:
        say(f"  at most {plan.weights_again_trials} trials for λ again, at the best architecture")
    say(f"  each on {plan.search_users:,} of {plan.users:,} users, {config.resources.slots} at a time")
    say(f"  then at most {plan.retests} re-tests and {plan.full_runs} trainings on all users")
    if priced is not None:
        from darec_search.console import print_estimate

        print_estimate(console, priced(config, plan))


def _check_runs(parsed: argparse.Namespace) -> None:
    from darec_search.runfile import load_run_file
    from darec_search.sweep import inspect_runs, trainings

    file = load_run_file(parsed.study, parsed.set)
    if _incomplete(parsed, inspect_runs(file)):
        return
    planned = trainings(file, Path())
    if parsed.json:
        print_json({"runs": list(file.runs), "trainings": len(planned), "missing": []})
        return
    say(f"{parsed.study} is valid. `darec-search train` would do {len(planned)} trainings:")
    for name, run in file.runs.items():
        seeds = ", ".join(map(str, run.seeds))
        say(f"  {name}: at most {run.config.optimization.epochs} epochs on {run.config.data.path}, seed {seeds}")


def _incomplete(parsed: argparse.Namespace, found: Findings) -> bool:
    """Refuse a file with problems; say what is missing of one without."""
    found.refuse(missing=False)
    if not found.missing:
        return False
    if parsed.json:
        print_json({"missing": found.missing})
        return True
    say(f"{parsed.study} is valid. Before it can run, this machine needs:")
    for line in found.missing:
        say(f"  {line}")
    return True


def load_named(parsed: argparse.Namespace) -> StudyConfig:
    """The study that the arguments name."""
    from darec_search.config import load_study

    address = [f"resources.address={parsed.address}"] if parsed.address else []
    return load_study(parsed.study, [*parsed.set, *address])
