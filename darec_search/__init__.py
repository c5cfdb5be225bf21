"""Distributed architecture and hyperparameter search for LLM-based recommenders.

`run(StudyConfig) -> StudyResult` is the main job; `darec_search.export.load(path)` opens what it exports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darec_search.config import StudyConfig
    from darec_search.pipeline import Observer, StudyResult


def run(config: StudyConfig, observer: Observer | None = None) -> StudyResult:
    """Run a study to its end, see `darec_search.pipeline.run`."""
    from darec_search.pipeline import run as run_pipeline  # Ray, Ax and torch load only when they are needed

    return run_pipeline(config, observer)
