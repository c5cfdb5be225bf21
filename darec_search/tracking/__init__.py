"""Windows onto the folders of studies and trainings: experiment trackers that can always be rebuilt from them.

A new tracker is one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from darec_search.study import Study
from darec_search.tracking.base import Tracker
from darec_search.tracking.trainings import Trainings


def _mlflow(shown: Study | Trainings, uri: str | None) -> Tracker:
    # Importing MLflow takes over a second.
    if isinstance(shown, Trainings):
        from darec_search.tracking.mlflow_trainings import MlflowTrainings

        return MlflowTrainings(shown, uri)
    from darec_search.tracking.mlflow import MlflowTracker

    return MlflowTracker(shown, uri)


TRACKERS: dict[str, Callable[[Study | Trainings, str | None], Tracker]] = {"mlflow": _mlflow}
"""How to make each tracker: from what it is to show and a URI (None: the tracker's own default)."""
