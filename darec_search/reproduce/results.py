"""What a reproduction has found, as documents: `results.json` for Table 2, one more for each figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from darec_search.reproduce.chains import Final, Search, measured
from darec_search.reproduce.experiments import Experiment
from darec_search.reproduce.methods import Method
from darec_search.reproduce.setup import Setup
from darec_search.sweep import MEASURED
from darec_search.sweep_results import METRICS, PerUser, p_value, reciprocal_ranks
from trainer.training.result import RunResult

Entry = dict[str, Any]
DAREC = "darec"
OWN = ("darec", "darec_paper")
"""What is not a baseline of DARec."""


def comparison(setup: Setup, methods: Sequence[Method], folder: Path) -> dict[str, Entry]:
    """Table 2 on one dataset: method → what was measured on the test split, as far as it is done.

    p-values are those of a paired t-test over users on the reciprocal rank, each user's in the mean over the seeds.

    Args:
        setup: dataset and scale.
        methods: in the order of the table.
        folder: of the dataset in the results folder.
    """
    entries: dict[str, Entry] = {}
    ranks: dict[str, PerUser | None] = {}
    for method in methods:
        counted = method.kind == "reference"
        folders = _finished(folder, "trainings", method.name, setup.scale.seeds)
        if counted:
            place = folder / "references" / method.name
            folders = [place] if (place / MEASURED["test"][0]).exists() else []
        if not folders:
            continue
        seeds = [] if counted else [int(one.name.rpartition("-")[2]) for one in folders]
        search = None if counted else Search(setup, method, folder / "search" / method.name).document()
        entries[method.name] = {
            **{"title": method.title, "kind": method.kind, **_measured(folders), "seeds": seeds},
            "unfinished": 0 if counted else len(setup.scale.seeds) - len(seeds),
            "search": search,
            "published": setup.paper.published.get(method.name),
        }
        ranks[method.name] = reciprocal_ranks(folders, "test")
    _compare(entries, ranks)
    return entries


def times_of(entry: Entry) -> tuple[float, float]:
    """Hours of training and seconds of inference over all users, in the mean over seeds (Table 4)."""
    return entry["train_s"] / 3600, entry["inference_ms_per_user"] * entry["users"] / 1000


def figure(setup: Setup, experiment: Experiment, finals: Mapping[str, Final], folder: Path) -> list[Entry]:
    """The variants of a figure on one dataset, in its order, as far as they are done.

    Args:
        setup: dataset and scale.
        experiment: the figure.
        finals: its trainings by the label of the variant.
        folder: of the dataset in the results folder.
    """
    found = []
    for variant in experiment.variants:
        final = finals.get(variant.label)
        folders = _finished(folder, final.place, final.name, setup.scale.seeds) if final else []
        if folders:
            entry = _measured(folders)
            place = {"label": variant.label, "series": variant.series, "x": variant.x, "y": variant.y}
            found.append({**place, **entry, "seeds": len(folders), "published": setup.paper.times.get(variant.method)})
    return found


def _finished(folder: Path, place: str, name: str, seeds: Sequence[int]) -> list[Path]:
    every = [folder / place / f"{name}-{seed}" for seed in seeds]
    return [one for one in every if measured(one)]


def _measured(folders: Sequence[Path]) -> Entry:
    """Means over trainings, and for metrics the sample's standard deviation (None for one) and the single values."""
    tests = [json.loads((one / MEASURED["test"][0]).read_text(encoding="utf-8")) for one in folders]
    values = {name: [test[name] for test in tests] for name in METRICS}
    results = [
        RunResult.model_validate_json((one / "result.json").read_text(encoding="utf-8"))
        for one in folders
        if (one / "result.json").exists()
    ]
    train = [result.cost.wall_s for result in results] or [test["train_s"] for test in tests]
    return {
        **{name: statistics.fmean(of) for name, of in values.items()},
        "sd": {name: statistics.stdev(of) if len(of) > 1 else None for name, of in values.items()},
        "values": values,
        "users": tests[0]["users"],
        "train_s": statistics.fmean(train),
        "inference_ms_per_user": statistics.fmean(1000 * test["seconds"] / test["users"] for test in tests),
        "best_epoch": [result.best_epoch for result in results],
    }


def _compare(entries: dict[str, Entry], ranks: Mapping[str, PerUser | None]) -> None:
    """Each against DARec, and each DARec against the best of the others by MRR."""
    for name, entry in entries.items():
        known = name != DAREC and DAREC in entries
        entry["p_value"] = p_value(ranks[DAREC], ranks[name]) if known else None
    others = {name: entry["mrr"] for name, entry in entries.items() if name not in OWN}
    if not others:
        return
    best = max(others, key=others.__getitem__)
    for name in OWN:
        if name in entries:
            entries[name]["best_baseline"] = best
            entries[name]["best_baseline_p_value"] = p_value(ranks[name], ranks[best])
            entries[name]["improvement"] = {
                metric: entries[name][metric] / highest - 1
                for metric in METRICS
                if (highest := max(entries[other][metric] for other in others)) > 0
            }
