"""What a study would do, checked before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from darec_search import samplers, warm_start, weights
from darec_search.arms import parse_arms
from darec_search.config import PrepareConfig, StudyConfig
from darec_search.credentials import resolve
from darec_search.fidelities import cheaper_fidelities, trial_fidelity
from darec_search.findings import Findings
from darec_search.identity import check_folder
from darec_search.runners.cluster import check_cluster
from darec_search.space import SearchSpace
from trainer.architecture import Architecture
from trainer.data.dataset import Dataset, has_dataset
from trainer.data.prepare import prepare, resolve_options
from trainer.errors import BadInput, NotHere
from trainer.storage import reached
from trainer.training.warm import check_positions, da_layer_count


@dataclass(frozen=True)
class Cheaper:
    """A cheaper fidelity that the sampler may choose."""

    epochs: int
    users: int
    share: float
    """Of a whole trial, that one of it counts."""


@dataclass(frozen=True)
class Plan:
    """The size of a study."""

    layers: int
    """DALayers."""
    points: int
    """Size of the search space."""
    weight_trials: int
    """Trials for λ before the bits."""
    search_trials: int
    """Trials that the sampler proposes; so many whole ones' worth where some are cheaper."""
    cheaper: list[Cheaper]
    """Fidelities that it may choose below a whole trial's."""
    weights_again_trials: int
    """Trials for λ after the bits, at most: what is known is not run again."""
    retests: int
    full_runs: int
    """Trainings on all users at most: the final model, and what it is compared with."""
    search_users: int
    users: int
    items: int
    fingerprint: str
    warm_start: list[warm_start.Use]
    """Old studies that the search starts from."""

    @property
    def searching(self) -> int:
        """Trainings of the search, at most."""
        return self.weight_trials + self.search_trials + self.weights_again_trials

    @property
    def runs(self) -> int:
        """Trainings of the search and its re-tests, at most."""
        return self.searching + self.retests


def open_dataset(config: StudyConfig) -> Dataset:
    """The study's dataset, prepared first where it is absent and the config says how.

    Raises:
        BadInput: if it cannot be opened or prepared, or was prepared in another way than the config says.
        NotHere: if neither it nor the source of its recipe is there.
    """
    return prepared_dataset(config.data.path, config.data.prepare)


def prepared_dataset(path: str, recipe: PrepareConfig | None) -> Dataset:
    """The dataset of a folder or URL, prepared first where it is absent and there is a recipe.

    Raises:
        BadInput, NotHere: as `open_dataset`.
    """
    with reached():
        return _prepared(path, recipe)


def _prepared(path: str, recipe: PrepareConfig | None) -> Dataset:
    if recipe is None:
        return Dataset.open(path)
    wanted = {"format": recipe.format, **resolve_options(recipe.format, recipe.options)}
    source = Path(recipe.source) if recipe.source else None
    if not has_dataset(path):
        if source is not None and not source.exists():
            raise NotHere(f"data.path: {path} is not prepared yet, and its source {source} is not there; put it there")
        prepare(recipe.format, source, path, **recipe.options)
    dataset = Dataset.open(path)
    found = {"format": dataset.manifest.format, **dataset.manifest.options}
    differing = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if differing:
        raise BadInput(
            f"{path}: was prepared in another way than data.prepare says (it differs in {', '.join(differing)}); "
            "remove that folder, or name another data.path"
        )
    return dataset


def inspect(config: StudyConfig, dataset: Dataset | None, found: Findings) -> int | None:
    """Look at everything about a study that can be known without training; what is wrong or missing goes to `found`.

    Args:
        config: the study.
        dataset: its dataset; None where it is not there.
        found: takes what is wrong or missing.

    Returns:
        The number of DALayers, where it can be known.
    """
    run = config.run_config("serial", {}, config.seed, users_fraction=1.0, epochs=1)
    layers = found.collect(lambda: da_layer_count(run))
    if layers:
        try:
            Architecture.parse(config.search.fixed_architecture, layers)
        except ValueError as error:
            found.problems.append(f"search.fixed_architecture: {error}")
        found.collect(lambda: parse_arms(config.promotion.arms, layers))
    space = SearchSpace(
        layers or 1, weights=config.search.weights.searched() if config.search.strategy == "joint" else {}
    )
    search = config.search
    costs = found.collect(lambda: [f.cost / trial_fidelity(config).cost for f in cheaper_fidelities(config)]) or []
    sampler = found.collect(lambda: samplers.create(search.sampler, space, 0, costs=costs, **search.sampler_options))
    if layers:
        found.collect(lambda: check_positions(run))
        if dataset is not None:
            fingerprint = dataset.fingerprint
            found.collect(lambda: check_folder(config, fingerprint, layers))
            found.collect(lambda: warm_start.check(config, fingerprint, layers, sampler))
    if config.tracking.enabled:
        found.collect(lambda: resolve(config.tracking.uri or "", "tracking.uri"))
    if config.resources.runner == "ray":
        found.collect(lambda: check_cluster(config))
    return layers


def check(config: StudyConfig, dataset: Dataset) -> Plan:
    """Everything about a study that can be known without training.

    Raises:
        BadInput: with every problem found, one line each.
    """
    found = Findings()
    layers = inspect(config, dataset, found)
    found.refuse()
    return size(config, dataset, layers or 0)


def size(config: StudyConfig, dataset: Dataset, layers: int) -> Plan:
    """How much a study over a dataset would run, with a model of so many DALayers."""
    for_weights = weights.trials_of(config) if config.search.strategy == "staged" else 0
    return Plan(
        layers=layers,
        points=SearchSpace(layers, weights=config.search.weights.searched()).size,
        weight_trials=for_weights,
        search_trials=config.search.trials,
        cheaper=_cheaper(config, dataset),
        weights_again_trials=for_weights if config.search.weights_again else 0,
        retests=config.promotion.most_retests,
        full_runs=3 + config.adds_prior,
        search_users=max(1, round(config.data.search_fraction * dataset.n_users)),
        users=dataset.n_users,
        items=dataset.n_items,
        fingerprint=dataset.fingerprint,
        warm_start=warm_start.check(config, dataset.fingerprint, layers, None),
    )


def _cheaper(config: StudyConfig, dataset: Dataset) -> list[Cheaper]:
    whole = trial_fidelity(config).cost
    return [
        Cheaper(f.epochs, max(1, round(f.users_fraction * dataset.n_users)), f.cost / whole)
        for f in cheaper_fidelities(config)
    ]
