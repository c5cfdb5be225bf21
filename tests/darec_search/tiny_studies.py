"""Study files small enough to run from data to export in seconds, in this process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from darec_search.config import StudyConfig

USERS, ITEMS, LAYERS = 90, 80, 2


def study_document(folder: Path, **sections: Any) -> dict[str, Any]:
    """A study over a synthetic shop that is prepared when it is first wanted; sections are merged into it."""
    document: dict[str, Any] = {
        "name": "tiny",
        "seed": 4,  # all serial wins, so that the final model has its CF part
        "output": str(folder / "study"),
        "cache": str(folder / "cache"),
        "data": {
            "path": str(folder / "data"),
            "prepare": {"format": "synthetic", "options": {"users": USERS, "items": ITEMS}},
            "search_fraction": 0.6,
            "max_items": 6,
            "max_item_tokens": 6,
        },
        "model": {
            "backbone": {"builtin": {"layers": LAYERS, "hidden": 16, "heads": 2, "vocabulary": 300, "steps": 5}},
            "adapters": {"bottleneck": 4},
            "collaborative": {"dimension": 4},
        },
        "negatives": {"mf_dimension": 8},
        "optimization": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3},
        "search": {"sampler": "random", "trials": 3, "epochs": 1, "weights": {"align": [0.1, 1.0]}},
        "promotion": {"candidates": 1, "repeats": 2},
        "resources": {"runner": "local"},
    }
    for name, section in sections.items():
        old = document.get(name)
        document[name] = {**old, **section} if isinstance(old, dict) and isinstance(section, dict) else section
    return copy.deepcopy(document)


def run_document(folder: Path, **sections: Any) -> dict[str, Any]:
    """A run file over the same shop; sections take the place of its own."""
    study = study_document(folder)
    data = {name: value for name, value in study["data"].items() if name != "search_fraction"}
    document = {"data": data, **{name: study[name] for name in ("model", "negatives", "optimization", "cache")}}
    return {**document, **sections}


def study_config(folder: Path, **sections: Any) -> StudyConfig:
    """The same, validated."""
    return StudyConfig.model_validate(study_document(folder, **sections))


def study_file(folder: Path, **sections: Any) -> Path:
    """The same as a YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study_document(folder, **sections), allow_unicode=True))
    return file
