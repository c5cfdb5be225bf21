"""MLflow as a window onto a study folder: a parent run a study, and under it its trials, final run and references.

The other modules `mlflow_*` are parts of this one; `mlflow_runs` writes the runs.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

# First of all: it says how patient MLflow is to be, which MLflow reads when it is imported.
from darec_search.tracking.mlflow_runs import Mirrored, MlflowRuns, alone, default_uri, reason, sqlite_file  # isort: skip

from mlflow import MlflowClient
from mlflow.entities import RunTag

from darec_search.credentials import resolve
from darec_search.study import Study
from darec_search.tracking.base import Champion, Synced
from darec_search.tracking.mlflow_model import history_tag, save
from darec_search.tracking.mlflow_registry import contender, current, register
from darec_search.tracking.mlflow_views import experiment_tags
from darec_search.tracking.records import FINAL, records

logger = logging.getLogger(__name__)


class MlflowTracker:
    """The `Tracker` for MLflow.

    Args:
        study: the study to show.
        uri: tracking URI, in which `${NAME}` is an environment variable; when None the config's, or `mlflow.db` inside
            the study folder.
    """

    def __init__(self, study: Study, uri: str | None = None) -> None:
        tracking = study.config.tracking
        self._study = study
        self._uri = uri or tracking.uri or default_uri(study.folder)
        experiment = tracking.experiment or study.config.name
        self._runs = MlflowRuns(self._uri, experiment, study.id, study.folder, lambda: experiment_tags(study))

    def sync(self, live: bool = False) -> Synced:
        """See `Tracker.sync`.

        Raises:
            BadInput: if MLflow cannot be reached at the URI.
            MlflowException: if it fails in the middle of the work; a later sync goes on from there.
        """
        return self._runs.sync(lambda known: records(self._study, live, known), self._register)

    def champion(self) -> Champion | None:
        """The version with the alias `champion` of the registered model that this study adds to; never raises."""
        file = sqlite_file(self._uri)
        if file is not None and not file.exists():
            return None
        try:
            # While a sync makes the tables of a new SQLite file, nobody else should.
            with alone(self._study.folder):
                uri = resolve(self._uri, "tracking.uri")
                return current(MlflowClient(tracking_uri=uri, registry_uri=uri), self._model_name)
        except Exception as error:
            logger.warning("%s: the champion cannot be read (%s)", self._runs.location, reason(error))
            return None

    @property
    def _model_name(self) -> str:
        return self._study.config.tracking.registered_model or self._study.config.name

    def _register(self, client: MlflowClient, runs: Mapping[str, Mirrored]) -> str | None:
        """Make best/ a version of the registered model once the final run has been measured on the test split."""
        best, run = self._study.folder / "best", runs.get(FINAL)
        new = contender(self._study)
        if run is None or run.status != "FINISHED" or new is None:
            return None
        name = self._model_name
        model, _, registered = run.tags.get("darec.model", "").rpartition("@")
        if registered == new.digest and model.rpartition("/")[0] == name:
            return model
        # Every export has a place of its own: an older version may stay the champion.
        place = f"model-{new.digest[:8]}"
        with tempfile.TemporaryDirectory(prefix="darec-search-") as folder:
            saved = save(best, Path(folder, place), run.run_id, place)
            client.log_artifacts(run.run_id, str(Path(folder, place)), place)
        version = register(client, name, run.run_id, f"{run.artifact_uri}/{place}", new)
        tags = {"darec.model": f"{name}/{version}@{new.digest}", "mlflow.log-model.history": history_tag(saved)}
        client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in tags.items()], synchronous=True)
        run.tags |= tags
        return f"{name}/{version}"
