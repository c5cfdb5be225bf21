"""Windows onto a study folder: experiment trackers that can always be rebuilt from it. A new one is one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darec_search.study import Study
    from darec_search.tracking.base import Tracker


def _mlflow(study: Study, uri: str | None) -> Tracker:
    from darec_search.tracking.mlflow import MlflowTracker  # importing MLflow takes over a second

    return MlflowTracker(study, uri)


TRACKERS: dict[str, Callable[[Study, str | None], Tracker]] = {"mlflow": _mlflow}
"""How to make each tracker: from a study and a URI (None: the tracker's own default)."""
