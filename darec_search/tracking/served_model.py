"""The model that MLflow loads and serves: an export at work.

MLflow keeps this file as it stands beside the export and runs it to get the model ("models from code"), so that
nothing of ours is pickled. It says what it is by `set_model`, at its end.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

EXPORT = "export"


class ExportedModel(PythonModel):
    """Answers histories with ranked items; its signature is `mlflow_model.SIGNATURE`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the export among the model's artifacts."""
        from darec_search.export import load

        self._recommender = load(context.artifacts[EXPORT])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Recommend after each history.

        Args:
            context: not used.
            model_input: columns `history` (item ids, oldest first) and perhaps `user` (an id, or nothing).
            params: `top`, items per history.

        Returns:
            A row a history, with the column `items`: `id`, `title` and `score` of each, best first.

        Raises:
            MlflowException: if a history is empty or names an unknown item; a server answers with its sentence.
        """
        from trainer.errors import BadInput

        histories = [[str(item) for item in history] for history in model_input["history"]]
        users = [user if isinstance(user, str) else None for user in model_input.get("user", [None] * len(histories))]
        top = int((params or {}).get("top", 10))
        try:
            found = self._recommender.recommend(histories, top=top, users=users)
        except BadInput as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        return pd.DataFrame({"items": [[asdict(item) for item in items] for items in found]})


set_model(ExportedModel())
