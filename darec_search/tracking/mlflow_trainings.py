"""MLflow as a window onto a folder of trainings."""

from __future__ import annotations

from darec_search.tracking.base import Synced
from darec_search.tracking.mlflow_runs import MlflowRuns, default_uri
from darec_search.tracking.mlflow_views import trainings_tags
from darec_search.tracking.trainings import Trainings, training_records


class MlflowTrainings:
    """The `Tracker` for folders of trainings.

    Args:
        trainings: the folder to show.
        uri: tracking URI, in which `${NAME}` is an environment variable; `mlflow.db` inside the folder when None.
    """

    def __init__(self, trainings: Trainings, uri: str | None = None) -> None:
        folder, name = trainings.folder, trainings.folder.absolute().name
        self._trainings = trainings
        self._runs = MlflowRuns(
            uri or default_uri(folder), name, trainings.id, folder, lambda: trainings_tags(trainings.id, name)
        )

    def sync(self, live: bool = False) -> Synced:
        """See `Tracker.sync`.

        Raises:
            BadInput: if MLflow cannot be reached at the URI.
            MlflowException: if it fails in the middle of the work; a later sync goes on from there.
        """
        return self._runs.sync(lambda known: training_records(self._trainings, live))

    def champion(self) -> None:
        """None: trainings register no model."""
        return
