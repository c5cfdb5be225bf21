"""What a process keeps between runs, so that the next trial starts in a fraction of a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.architecture import Architecture
from trainer.baselines import BASELINES, Catalogue, baseline_options, create_baseline
from trainer.baselines.item_text import item_vectors
from trainer.cache import cached
from trainer.config import BackboneConfig, ItemTextConfig, NegativesConfig, PriorConfig, RunConfig
from trainer.data.dataset import Dataset
from trainer.data.negatives import hard_negatives
from trainer.data.ragged import Ragged
from trainer.data.relations import Relations, item_relations
from trainer.data.text import encode_items
from trainer.errors import BadInput
from trainer.models.backbones import LoadedBackbone, layer_count, load_backbone, position_count
from trainer.models.item_head import unit_vectors
from trainer.models.streams import PROMPT, StreamPacker
from trainer.training.precision import Precision, hold_in
from trainer.training.sharding import is_sharded
from trainer.training.workers import Workers


@dataclass(frozen=True)
class Validation:
    """Whose held-out items a run is judged by."""

    histories: Ragged
    """[users] items before the target."""
    targets: NDArray[np.int32]
    """[users]."""
    users: NDArray[np.int64]
    """[users] each one's number in the training, -1 for one that is not trained on."""


@dataclass(frozen=True)
class Judged:
    """What every run needs and does not change; all that a baseline needs."""

    dataset: Dataset
    validation: Validation


@dataclass(frozen=True)
class Materials(Judged):
    """What DARec needs beside it."""

    backbone: LoadedBackbone
    packer: StreamPacker
    hard_negatives: Ragged
    relations: Relations | None = None
    """Of the items, for a model with a prior."""
    item_texts: Tensor | None = None
    """[items, dimension] of `model.item_text`, if the model has it."""


class Warm:
    """Materials by config, loaded at first use and kept while the process lives."""

    def __init__(self) -> None:
        self._datasets: dict[str, Dataset] = {}
        self._subsets: dict[tuple[str, float, int], Dataset] = {}
        self._backbones: dict[tuple[str, str | None, Precision], LoadedBackbone] = {}
        self._packers: dict[tuple[str, str | None, Path, int], StreamPacker] = {}
        self._negatives: dict[tuple[str, float, int, NegativesConfig], Ragged] = {}
        self._relations: dict[tuple[str, float, int, int, int], Relations] = {}
        self._item_texts: dict[tuple[str, ItemTextConfig], Tensor] = {}

    def of(self, config: RunConfig) -> Judged:
        """What a run needs, DARec's or a baseline's.

        Raises:
            BadInput: if something of it cannot be used.
        """
        return self.judged(config) if config.baseline is not None else self.materials(config)

    def materials(self, config: RunConfig) -> Materials:
        """What a run of DARec needs.

        Raises:
            BadInput: if the dataset or the backbone cannot be used, or streams are longer than the backbone allows.
        """
        cache = config.cache
        judged = self.judged(config)
        dataset, full = judged.dataset, self._datasets[config.data.path]
        backbone = self._backbone(config, full, cache)
        packer = self._packer(backbone, full, config.data.max_item_tokens)
        _refuse_long_streams(config, backbone.model.max_positions)
        negatives_key = (config.data.path, config.data.users_fraction, config.data.subset_seed, config.negatives)
        if config.losses.contrastive == 0:
            negatives = Ragged.from_rows([[]] * dataset.n_items)
        elif negatives_key in self._negatives:
            negatives = self._negatives[negatives_key]
        else:
            negatives = self._negatives[negatives_key] = hard_negatives(dataset, config.negatives, cache)
        relations = None if config.model.prior is None else self._related(config, config.model.prior, dataset)
        texts = None if config.model.item_text is None else self._texts(config, config.model.item_text, full)
        return Materials(dataset, judged.validation, backbone, packer, negatives, relations, texts)

    def judged(self, config: RunConfig) -> Judged:
        """The dataset of a run, and whose held-out items it is judged by.

        Raises:
            BadInput: if the dataset cannot be used.
        """
        data = config.data
        path = data.path
        if path not in self._datasets:
            self._datasets[path] = Dataset.open(path)
        full = self._datasets[path]
        subset_key = (path, data.users_fraction, data.subset_seed)
        if subset_key not in self._subsets:
            whole = data.users_fraction == 1
            self._subsets[subset_key] = full if whole else full.subset(data.users_fraction, data.subset_seed)
        dataset = self._subsets[subset_key]
        judged = full if data.validation_users == "all" else dataset
        return Judged(dataset, _validation(judged, dataset))

    def _backbone(self, config: RunConfig, dataset: Dataset, cache: Path | str) -> LoadedBackbone:
        wanted, precision = config.model.backbone, config.execution.precision
        name = str(builtin_folder(wanted, dataset, cache)) if wanted.name == "builtin" else wanted.name
        key = (name, wanted.revision, precision)
        sharded = is_sharded(config.execution, Workers.current())
        if key in self._backbones and not sharded:
            return self._backbones[key]
        loaded = load_backbone(name, wanted.revision)
        hold_in(loaded.model, precision)
        # One that will be spread over the workers is of no use to another run.
        if not sharded:
            self._backbones[key] = loaded
        return loaded

    def _related(self, config: RunConfig, prior: PriorConfig, dataset: Dataset) -> Relations:
        data = config.data
        key = (data.path, data.users_fraction, data.subset_seed, prior.gap, prior.partners)
        if key not in self._relations:
            self._relations[key] = item_relations(dataset, prior, config.cache)
        return self._relations[key]

    def _texts(self, config: RunConfig, wanted: ItemTextConfig, dataset: Dataset) -> Tensor:
        key = (config.data.path, wanted)
        if key not in self._item_texts:
            catalogue, field = Catalogue.of(dataset, config.cache), "model.item_text.encoder"
            vectors = item_vectors(catalogue, wanted.encoder, "mean", field=field)
            self._item_texts[key] = unit_vectors(vectors, wanted.dimension)
        return self._item_texts[key]

    def _packer(self, backbone: LoadedBackbone, dataset: Dataset, max_item_tokens: int) -> StreamPacker:
        key = (backbone.name, backbone.revision, dataset.folder, max_item_tokens)
        if key not in self._packers:
            tokens = encode_items(backbone.tokenizer, dataset.sentences, max_item_tokens)
            prompt = backbone.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
            self._packers[key] = StreamPacker(tokens.values, tokens.offsets, prompt)
        return self._packers[key]


def _validation(judged: Dataset, trained: Dataset) -> Validation:
    """The validation items of one (sub)set of the users for a run on another."""
    number = np.full(max(judged.user_index.max(), trained.user_index.max()) + 1, -1)
    number[trained.user_index] = np.arange(trained.n_users)
    return Validation(judged.train, judged.validation, number[judged.user_index])


def builtin_folder(config: BackboneConfig, dataset: Dataset, cache: Path | str) -> Path:
    """Folder of the built-in backbone for this catalogue's text; trained at first use, then found by content."""
    from trainer.models.backbones.builtin import build_builtin

    key = {"config": config.builtin.model_dump(), "items": dataset.manifest.digests["items"], "prompt": PROMPT}
    return cached(cache, "backbone", key, lambda out: build_builtin(config.builtin, dataset.sentences, PROMPT, out))


def check_run(config: RunConfig, warm: Warm) -> None:
    """Load what a run needs and check that its architecture or baseline fits, before anything is trained.

    Raises:
        BadInput: if dataset, backbone, architecture or baseline cannot be used.
    """
    if config.baseline is not None:
        baseline_options(config.baseline)
        dataset = warm.judged(config).dataset
        if config.baseline.name in BASELINES:
            create_baseline(config.baseline, Catalogue.of(dataset, config.cache), config.data.max_items, config.seed)
        return
    try:
        Architecture.parse(config.model.architecture, da_layer_count(config))
    except ValueError as error:
        raise BadInput(f"model.architecture: {error}") from error
    check_positions(config)
    warm.materials(config)


def da_layer_count(config: RunConfig) -> int:
    """Number of DALayers of a run's model, without loading it.

    Raises:
        BadInput: if the backbone is unknown or the replacement frequency leaves no DALayer.
    """
    backbone = config.model.backbone
    layers = backbone.builtin.layers if backbone.name == "builtin" else layer_count(backbone.name, backbone.revision)
    count = layers // config.model.adapters.replacement_frequency
    if count == 0:
        raise BadInput(
            f"model.adapters.replacement_frequency: {config.model.adapters.replacement_frequency} leaves no DALayer "
            f"in a backbone of {layers} layers; choose at most {layers}"
        )
    return count


def check_positions(config: RunConfig) -> None:
    """Check that the longest stream fits the backbone, without loading it.

    Raises:
        BadInput: if the backbone is unknown or knows too few positions.
    """
    backbone = config.model.backbone
    if backbone.name == "builtin":
        from trainer.models.backbones.builtin import MAX_POSITIONS

        _refuse_long_streams(config, MAX_POSITIONS)
    else:
        _refuse_long_streams(config, position_count(backbone.name, backbone.revision))


def _refuse_long_streams(config: RunConfig, positions: int) -> None:
    longest = config.data.max_items * (config.data.max_item_tokens + 1)
    if longest > positions:
        raise BadInput(
            f"data.max_items × (data.max_item_tokens + 1) = {longest} tokens, but the backbone "
            f"{config.model.backbone.name} knows {positions} positions; lower one of the two"
        )
