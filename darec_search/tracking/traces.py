"""What runs leave in a study folder, read while they may still be writing it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.training.result import Row, RunResult


def begun(folder: Path) -> bool:
    """Whether a run has left a trace of training."""
    return (folder / "curve.jsonl").exists() or (folder / "checkpoint").exists()


def read_curve(file: Path) -> list[Row]:
    """The rows of a curve that is perhaps being written at this moment: a line that is not whole ends it."""
    rows: list[Row] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return rows
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_json(file: Path) -> Any:
    """A JSON document of the study folder; None while it is not there or not readable."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def read_result(folder: Path) -> RunResult | None:
    """The result of a run; None while it has none that can be read."""
    try:
        return RunResult.model_validate_json((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def estimated_start(folder: Path, curve: Sequence[Row]) -> float:
    """Unix seconds; a run without a result has not said when it began: its newest trace less what it has counted."""
    traces = [folder / name for name in ("curve.jsonl", "checkpoint") if (folder / name).exists()]
    return max(file.stat().st_mtime for file in traces) - seconds_of(curve)


def seconds_of(curve: Sequence[Row]) -> float:
    """Seconds that a run had counted at its last evaluation."""
    return curve[-1].get("seconds", 0.0) if curve else 0.0
