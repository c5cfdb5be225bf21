"""Run configs small enough to train in about a second."""

from __future__ import annotations

from pathlib import Path

from trainer.config import RunConfig
from trainer.data.prepare import prepare


def tiny_data(folder: Path, users: int = 150, items: int = 80) -> Path:
    """A synthetic dataset folder."""
    if not (folder / "data").exists():
        prepare("synthetic", None, folder / "data", users=users, items=items)
    return folder / "data"


def tiny_run(folder: Path, **sections: dict) -> RunConfig:
    """A run over `tiny_data`; keyword sections are merged into the defaults."""
    document = {
        "data": {"path": str(tiny_data(folder)), "max_items": 8, "max_item_tokens": 8},
        "model": {
            "backbone": {"builtin": {"layers": 2, "hidden": 16, "heads": 2, "vocabulary": 320, "steps": 20}},
            "adapters": {"bottleneck": 4},
            "collaborative": {"dimension": 4},
        },
        "negatives": {"mf_dimension": 8},
        "optimization": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3},
        "cache": str(folder / "cache"),
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section} if isinstance(section, dict) else section
    return RunConfig.model_validate(document)
