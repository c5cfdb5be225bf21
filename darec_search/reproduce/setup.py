"""The configs of a reproduction's trainings on one dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from darec_search.config import apply_overrides, explain
from darec_search.reproduce.methods import Changes, Method
from darec_search.reproduce.published import PaperDataset, paper_dataset
from darec_search.reproduce.scales import Scale, table_3_of
from darec_search.runfile import merged
from darec_search.space import Point, SearchSpace
from trainer.architecture import Architecture
from trainer.config import RunConfig
from trainer.data.dataset import Manifest, read_manifest
from trainer.errors import BadInput
from trainer.storage import absolute
from trainer.training.warm import da_layer_count


@dataclass(frozen=True)
class Setup:
    """A dataset at a scale.

    Args:
        name: of the dataset: its folder's.
        data: its folder or URL.
        manifest: what it holds.
        scale: how large the trainings are.
        overrides: `--set`, as written.
    """

    name: str
    data: str
    manifest: Manifest
    scale: Scale
    overrides: tuple[str, ...] = ()

    @classmethod
    def open(cls, data: str, scale: Scale, overrides: tuple[str, ...] = ()) -> Setup:
        """Look at a dataset folder.

        Raises:
            BadInput: if it is none.
        """
        return cls(Path(data.rstrip("/")).name, absolute(data), read_manifest(data), scale, overrides)

    @property
    def paper(self) -> PaperDataset:
        """The paper's dataset of this name."""
        return paper_dataset(self.name, self.manifest)

    def config(self, method: Method, *changes: Changes, seed: int = 0) -> RunConfig:
        """A training of a method on all users, with further changes.

        Raises:
            BadInput: if a field is wrong, such as one of `--set`.
        """
        document = self._document(method)
        for changed in changes:
            document = merged(document, changed)
        try:
            return RunConfig.model_validate({**document, "seed": seed})
        except ValidationError as error:
            raise BadInput(explain(error, f"reproduce, {method.name}")) from error

    def search_changes(self, method: Method) -> tuple[Changes, ...]:
        """In what the trainings of a method's search differ."""
        scale = self.scale
        fraction = table_3_of(self.paper.name)[1] if scale.table_3 else {}
        own = (scale.search_of.get(name, {}) for name in (method.kind, method.name))
        return fraction, scale.search, *own

    def space(self, method: Method) -> SearchSpace:
        """What the search of a method chooses from; its levels are called by the last part of their field.

        Raises:
            BadInput: if the backbone is not there.
        """
        layers = da_layer_count(self.config(method)) if method.bits else 0
        return SearchSpace(layers, weights={_leaf(name): levels for name, levels in method.levels.items()})

    def _document(self, method: Method) -> dict[str, Any]:
        scale = self.scale
        table_3 = table_3_of(self.paper.name)[0] if scale.table_3 else {}
        of_kind: tuple[Changes, ...] = (table_3, scale.darec) if method.kind == "darec" else (scale.baseline,)
        document: dict[str, Any] = {"data": {"path": self.data}}
        for changes in (scale.common, *of_kind, scale.methods.get(method.name, {})):
            document = merged(document, changes)
        return merged(apply_overrides(document, self.overrides), method.changes)


def changes_of(method: Method, point: Point) -> dict[str, Any]:
    """The fields that a design of a method's search stands for."""
    changes: dict[str, Any] = {name: _number(point.weights[_leaf(name)]) for name in method.levels}
    return changes | ({"model.architecture": Architecture(point.bits).text} if method.bits else {})


def settings(changes: Mapping[str, Any]) -> str:
    """Such fields in words."""
    return ", ".join(
        str(value) if name == "model.architecture" else f"{_leaf(name).replace('_', ' ')} {value:g}"
        for name, value in changes.items()
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _number(value: float) -> float | int:
    """Options that count something take no 64.0."""
    return int(value) if value.is_integer() else value
