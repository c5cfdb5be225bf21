"""The documents of a results folder: what they were measured on, and `results.md` and pictures made from the JSON."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from darec_search.reproduce.experiments import EXPERIMENTS
from darec_search.reproduce.markdown import comparison_tables, figure_table, times_table
from darec_search.reproduce.methods import all_methods
from darec_search.reproduce.plots import draw
from darec_search.reproduce.results import DAREC
from darec_search.reproduce.scales import Scale
from darec_search.reproduce.setup import Setup
from trainer.training.result import write_atomic


def read(file: Path) -> dict[str, Any]:
    """A JSON document; empty where there is none yet."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def dataset_facts(setup: Setup) -> dict[str, Any]:
    """What a dataset is, and whether the paper's figures may stand beside it."""
    names = ("users", "items", "train_interactions", "fingerprint")
    facts = {name: getattr(setup.manifest, name) for name in names}
    exclude_seen = setup.config(all_methods()[DAREC]).data.exclude_seen
    return {**facts, "exclude_seen": exclude_seen, "paper": setup.paper.name, "why_not_compared": setup.paper.why_not}


def machine_facts(scale: Scale) -> dict[str, Any]:
    """When and on what it was measured."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "scale": scale.name,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": ", ".join(gpus) or f"{os.cpu_count()} CPU cores, no GPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def render(out: Path) -> None:
    """`results.md` and the pictures, from the JSON documents of a results folder alone."""
    about = read(out / "reproduction.json")
    parts = [f"# Reproduction at the scale `{about['scale']}`\n\n{about['date']}, {about['hardware']}.\n"]
    for experiment in EXPERIMENTS.values():
        comparing = experiment.shown == "comparison"
        found = read(out / ("results.json" if comparing else f"{experiment.name}.json"))
        found = {dataset: entries for dataset, entries in found.items() if entries}
        if not found:
            continue
        if comparing:
            heading = f"## {experiment.title}\n\nThe paper: {experiment.claim}"
            parts.append(f"{heading}\n\n{comparison_tables(found, about)}")
        elif experiment.shown == "times":
            parts.append(times_table(experiment.title, experiment.claim, found, about["hardware"]))
        else:
            draw(experiment, found, out / "figures" / f"{experiment.name}.png")
            picture = f"\n![{experiment.title}](figures/{experiment.name}.png)\n"
            parts.append(figure_table(experiment.title, experiment.claim, found) + picture)
    write_atomic(out / "results.md", "\n".join(parts))
