"""An export as a model that MLflow can load and serve anywhere: code, weights, signature, example, pinned packages."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pyarrow.parquet as pq
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

_FIELDS = {"id": DataType.string, "title": DataType.string, "score": DataType.double}
_ITEM = Object([Property(name, kind) for name, kind in _FIELDS.items()])
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(Array(DataType.string), "history"), ColSpec(DataType.string, "user", required=False)]),
    outputs=Schema([ColSpec(Array(_ITEM), "items")]),
    params=ParamSchema([ParamSpec("top", DataType.long, 10)]),
)
"""A history is a list of item ids, which JSON can say; ids may hold commas."""

_PACKAGES = (
    "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "rich", "safetensors", "scipy", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
"""What a recommender imports; its own code travels with the model."""


def save(export: Path, out: Path, run_id: str, artifact_path: str) -> Model:
    """Write an export as an MLflow model. The model itself is not loaded.

    Args:
        export: the exported folder.
        out: a folder that does not exist yet.
        run_id: the run that the model will belong to.
        artifact_path: where it will lie among the run's artifacts.

    Returns:
        What MLflow says of the model (its `MLmodel`).
    """
    package = Path(__file__).resolve().parents[1]
    model = Model(run_id=run_id, artifact_path=artifact_path)
    history = pq.read_table(export / "items.parquet", columns=["id"]).column("id").to_pylist()[:3]
    mlflow.pyfunc.save_model(
        out,
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"export": str(export)},
        code_paths=[str(package), str(package.parent / "trainer")],
        mlflow_model=model,
        signature=SIGNATURE,
        input_example=(pd.DataFrame({"history": [history]}), {"top": 3}),
        pip_requirements=[f"{name}=={_version(name)}" for name in _PACKAGES],
    )
    return model


def history_tag(model: Model) -> str:
    """The value of the tag by which MLflow's table of runs shows that a run left a model."""
    return json.dumps([model.get_tags_dict()])


def _version(package: str) -> str:
    """Without what follows a plus: a build for one kind of machine, which no index has under that name."""
    return metadata.version(package).partition("+")[0]
