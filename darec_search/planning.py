"""What a study would do, checked before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from darec_search import samplers
from darec_search.config import StudyConfig
from darec_search.runners.cluster import check_address
from darec_search.space import SearchSpace
from darec_search.study import check_folder
from trainer.architecture import Architecture
from trainer.data.dataset import MANIFEST, Dataset
from trainer.data.prepare import prepare, resolve_options
from trainer.errors import BadInput
from trainer.training.warm import check_positions, da_layer_count

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """The size of a study."""

    layers: int
    """DALayers."""
    points: int
    """Size of the search space."""
    grid_trials: int
    """Trials of the λ grid."""
    search_trials: int
    """Trials that the sampler proposes."""
    retests: int
    full_runs: int
    """Trainings on all users: winner and fixed arms, at most."""
    search_users: int
    users: int
    items: int
    fingerprint: str

    @property
    def runs(self) -> int:
        """Trainings of the search and its re-tests."""
        return self.grid_trials + self.search_trials + self.retests


def open_dataset(config: StudyConfig) -> Dataset:
    """The study's dataset, prepared first where it is absent and the config says how.

    Raises:
        BadInput: if it cannot be opened or prepared, or was prepared in another way than the config says.
    """
    path = Path(config.data.path)
    recipe = config.data.prepare
    if recipe is not None and not (path / MANIFEST).exists():
        prepare(recipe.format, Path(recipe.source) if recipe.source else None, path, **recipe.options)
    dataset = Dataset.open(path)
    if recipe is not None:
        wanted = {"format": recipe.format, **resolve_options(recipe.format, recipe.options)}
        found = {"format": dataset.manifest.format, **dataset.manifest.options}
        differing = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        if differing:
            raise BadInput(
                f"{path}: was prepared in another way than data.prepare says (it differs in {', '.join(differing)}); "
                "remove that folder, or name another data.path"
            )
    return dataset


def check(config: StudyConfig, dataset: Dataset) -> Plan:
    """Everything about a study that can be known without training.

    Raises:
        BadInput: with every problem found, one line each.
    """
    problems: list[str] = []
    run = config.run_config("serial", {}, config.seed, users_fraction=1.0, epochs=1)
    layers = _collect(problems, lambda: da_layer_count(run))
    weights = config.search.weights.searched()
    if layers:
        try:
            Architecture.parse(config.search.fixed_architecture, layers)
        except ValueError as error:
            problems.append(f"search.fixed_architecture: {error}")
        space = SearchSpace(layers, weights=weights if config.search.strategy == "joint" else {})
        _collect(problems, lambda: samplers.create(config.search.sampler, space, 0, **config.search.sampler_options))
        _collect(problems, lambda: check_positions(run))
        _collect(problems, lambda: check_folder(config, dataset.fingerprint, layers))
    if config.resources.runner == "ray":
        _collect(problems, lambda: check_address(config))
    if problems:
        raise BadInput("\n  ".join(problems))
    levels = math.prod(len(values) for values in weights.values())
    staged = config.search.strategy == "staged"
    return Plan(
        layers=layers or 0,
        points=SearchSpace(layers or 1, weights=weights).size,
        grid_trials=levels if staged and levels > 1 else 0,
        search_trials=config.search.trials,
        retests=(config.promotion.candidates + 2) * config.promotion.repeats,
        full_runs=3,
        search_users=max(1, round(config.data.search_fraction * dataset.n_users)),
        users=dataset.n_users,
        items=dataset.n_items,
        fingerprint=dataset.fingerprint,
    )


def _collect(problems: list[str], attempt: Callable[[], T]) -> T | None:
    try:
        return attempt()
    except BadInput as error:
        problems.append(str(error))
        return None
