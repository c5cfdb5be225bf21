"""What a study carries off: a folder that recommends by itself.

architecture.json   the card: bits, λ, model, backbone, metrics with their split and data fingerprint, versions
model.safetensors   trained tensors alone
backbone/           the frozen model and its tokenizer, for a built-in or local one; a hub id stays an id in the card
items.parquet       id, title and sentence of every item, in index order
users.parquet       id of every user that was trained on, in index order
README.md, architecture.png
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from darec_search.evaluation import Evaluation
from darec_search.study import Study
from trainer.architecture import Architecture
from trainer.config import LossConfig, ModelConfig, Positive, RunConfig, Section
from trainer.data.dataset import Dataset, Split
from trainer.errors import BadInput
from trainer.inference import TrainedModel, assemble, default_device
from trainer.metrics import CUTOFF
from trainer.models.backbones import is_local
from trainer.training.model_file import load_model
from trainer.training.result import RunResult, write_atomic
from trainer.training.warm import Warm

VERSION = 1
CARD = "architecture.json"


class Card(Section):
    """`architecture.json`."""

    version: int = Field(VERSION, description="Version of this format.")
    study: str = Field(description="Name of the study.")
    study_id: str = Field(description="Its identity: a hash of all that changes a trial's outcome.")
    architecture: str = Field(description="One group of S/P letters per DALayer.")
    bits: tuple[int, ...] = Field(description="Layer by layer: causal, context, recommendation; 0 serial, 1 parallel.")
    model: ModelConfig = Field(description="The model; a backbone called `backbone` is the folder beside the card.")
    losses: LossConfig = Field(description="Loss weights λ and their sampling.")
    seed: int
    epochs: int = Field(description="Epochs of the final run.")
    best_epoch: int | None
    users: Positive = Field(description="Users that it was trained on.")
    items: Positive = Field(description="Items that it ranks.")
    max_items: Positive = Field(description="Newest items of a history that are read.")
    max_item_tokens: Positive = Field(description="Tokens of an item sentence that are read.")
    fingerprint: str = Field(description="SHA-256 fingerprint of the dataset.")
    metrics: dict[str, dict[str, float]] = Field(description="Metrics by split.")
    versions: dict[str, str | None] = Field(description="Package versions of the study.")
    commit: str | None = Field(description="Commit of the code, when known.")
    sha256: str = Field(description="SHA-256 of model.safetensors.")
    items_sha256: str = Field(description="SHA-256 of items.parquet.")
    card_sha256: str = Field("", description="SHA-256 of this card's other fields.")

    def sealed(self) -> Card:
        """The same card with its own hash."""
        return self.model_copy(update={"card_sha256": self._digest()})

    @property
    def intact(self) -> bool:
        """Whether the card is as it was sealed. A flipped bit of an architecture would fit the tensors all the same."""
        return self.card_sha256 == self._digest()

    def _digest(self) -> str:
        text = json.dumps(self.model_dump(mode="json", exclude={"card_sha256"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def export(study: Study, out: Path) -> Card:
    """Write the study's final model to a folder of its own, whole or not at all.

    Args:
        study: a study whose final run is done.
        out: the folder; an earlier export in it is replaced.

    Raises:
        BadInput: if there is no final run yet, its dataset is gone or changed, or `out` cannot be used.
    """
    final = study.folder / "final"
    result = study.final_result()
    if result is None or result.status != "finished" or not (final / "model.safetensors").exists():
        raise BadInput(f"{study.folder}: has no final model yet; run `darec-search promote {study.folder}` first")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / CARD).exists())):
        raise BadInput(f"{out}: holds something else than an export; choose another folder")
    dataset = study.dataset()
    config = RunConfig.model_validate_json((final / "run.json").read_text(encoding="utf-8"))
    data = config.data.model_copy(update={"path": str(dataset.folder)})
    # The commit that was trained on, whatever is the hub's newest by now.
    trained_on = {"revision": result.revision or config.model.backbone.revision}
    model = config.model.model_copy(update={"backbone": config.model.backbone.model_copy(update=trained_on)})
    cache = str(Path(study.config.cache).absolute())
    config = config.model_copy(update={"data": data, "model": model, "cache": cache})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        card = _write(study, config, result, dataset, temporary)
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return card


def _write(study: Study, config: RunConfig, result: RunResult, dataset: Dataset, folder: Path) -> Card:
    from darec_search.report import architecture_picture

    final = study.folder / "final"
    shutil.copyfile(final / "model.safetensors", folder / "model.safetensors")
    backbone = Warm().materials(config).backbone
    name = backbone.name
    if is_local(name):
        shutil.copytree(name, folder / "backbone", ignore=_only_model_files)
        name = "backbone"
    columns = {"id": dataset.item_ids, "title": dataset.titles, "sentence": dataset.sentences}
    pq.write_table(pa.table(columns), folder / "items.parquet")
    pq.write_table(pa.table({"id": dataset.user_ids}), folder / "users.parquet")
    named = config.model.backbone.model_copy(update={"name": name, "revision": backbone.revision})
    model = config.model.model_copy(update={"backbone": named})
    card = _card(study, config.model_copy(update={"model": model}), result, dataset, folder).sealed()
    write_atomic(folder / CARD, card.model_dump_json(indent=2))
    architecture_picture(Architecture(card.bits), folder / "architecture.png")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")
    return card


def _card(study: Study, config: RunConfig, result: RunResult, dataset: Dataset, folder: Path) -> Card:
    metrics = {"validation": result.metrics}
    measured = study.folder / "final" / "metrics.json"
    if measured.exists():
        test = json.loads(measured.read_text(encoding="utf-8"))
        metrics["test"] = {name: value for name, value in test.items() if name not in ("split", "users")}
    architecture = Architecture.parse(config.model.architecture, study.space.layers)
    return Card(
        study=study.config.name,
        study_id=study.id,
        architecture=architecture.text,
        bits=architecture.bits,
        model=config.model,
        losses=config.losses,
        seed=config.seed,
        epochs=config.optimization.epochs,
        best_epoch=result.best_epoch,
        users=dataset.n_users,
        items=dataset.n_items,
        max_items=config.data.max_items,
        max_item_tokens=config.data.max_item_tokens,
        fingerprint=dataset.fingerprint,
        metrics=metrics,
        versions=study.environment["packages"],
        commit=study.environment["commit"],
        sha256=_sha256(folder / "model.safetensors"),
        items_sha256=_sha256(folder / "items.parquet"),
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _only_model_files(folder: str, names: list[str]) -> list[str]:
    """For `copytree`: leave out weights that are not safetensors, and folders."""
    keep = (".json", ".safetensors", ".txt", ".model")
    return [name for name in names if not name.endswith(keep) or (Path(folder) / name).is_dir()]


def _readme(card: Card) -> str:
    table = "\n".join(
        f"| {split} | " + " | ".join(f"{values[name]:.4f}" for name in ("mrr", "recall@10", "ndcg@10")) + " |"
        for split, values in card.metrics.items()
    )
    weights = f"λ1 (align) {card.losses.align:g}, λ2 (contrastive) {card.losses.contrastive:g}, "
    weights += f"λ3 (collaborative) {card.losses.collaborative:g}"
    return f"""# {card.study}: DARec `{card.architecture}`

![architecture](architecture.png)

S is a serial, P a parallel adapter; one group per DALayer: causal, context, recommendation. {weights}.

| split | MRR | Recall@10 | NDCG@10 |
| --- | --- | --- | --- |
{table}

All {card.items:,} items are ranked, none is masked; {card.users:,} users; data fingerprint `{card.fingerprint[:16]}`.

    darec-search recommend . --history ID,ID,...
    darec-search evaluate . DATASET
"""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    id: str
    title: str
    score: float


class Recommender:
    """An export at work. Make one with `load`."""

    def __init__(self, card: Card, trained: TrainedModel, items: dict[str, list[str]], users: list[str]) -> None:
        self.card = card
        self._trained = trained
        self._ids = items["id"]
        self._titles = items["title"]
        self._index = {item: index for index, item in enumerate(self._ids)}
        self._users = {user: index for index, user in enumerate(users)}

    @property
    def item_ids(self) -> list[str]:
        """Id of every item that can be recommended, in index order."""
        return list(self._ids)

    def recommend(
        self, histories: Sequence[Sequence[str]], top: int = 10, users: Sequence[str | None] | None = None
    ) -> list[list[Recommendation]]:
        """The best items after each history, best first. Items of the history itself may be among them.

        Args:
            histories: item ids, oldest first, at least one each.
            top: items per history.
            users: user id of each history, where known; others get the average user's collaborative vector.

        Raises:
            BadInput: if a history is empty or names an unknown item, or there are not as many users as histories.
        """
        if users is not None and len(users) != len(histories):
            raise BadInput(f"users: there are {len(users)} for {len(histories)} histories; give one each, or none")
        indices = [self._history(place, history) for place, history in enumerate(histories)]
        known = [self._users.get(user, -1) if user is not None else -1 for user in users or [None] * len(indices)]
        values, chosen = self._trained.best(indices, top, np.array(known, dtype=np.int64))
        return [
            [
                Recommendation(self._ids[item], self._titles[item], value)
                for item, value in zip(row, row_values, strict=True)
            ]
            for row, row_values in zip(chosen.tolist(), values.tolist(), strict=True)
        ]

    def titles(self, history: Sequence[str]) -> list[str]:
        """Titles of items by id."""
        return [self._titles[self._index[item]] for item in history]

    def evaluate(self, dataset: Dataset, split: Split = "test", cutoffs: Sequence[int] = ()) -> Evaluation:
        """Rank every user's held-out item of a dataset with the same items.

        Args:
            dataset: the dataset.
            split: `validation` or `test`, which is opened and that noted in the dataset's folder.
            cutoffs: each k, at least 1, of metrics beside 10.

        Raises:
            BadInput: if its items are not the export's.
        """
        if dataset.item_ids != self._ids:
            raise BadInput(
                f"{dataset.folder}: its {dataset.n_items} items are not the {len(self._ids)} items of this export; "
                "evaluate on the dataset that it was trained on"
            )
        every = tuple(sorted({CUTOFF, *cutoffs}))
        known = dataset.fingerprint == self.card.fingerprint
        if split == "test":
            dataset = dataset.unsealed(f"evaluation of the export {self.card.sha256[:12]} of study {self.card.study}")
        ranked = self._trained.rank(dataset, split, known_users=known, top=every[-1])
        return Evaluation(dataset, split, every, ranked)

    def _history(self, place: int, history: Sequence[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        if not history:
            raise BadInput(f"history {place + 1}: is empty; name at least one item id")
        unknown = [item for item in history if item not in self._index]
        if unknown:
            raise BadInput(f"history {place + 1}: item {unknown[0]!r} is unknown to this model")
        return np.array([self._index[item] for item in history], dtype=np.int64)


def load(path: Path | str, device: str | None = None) -> Recommender:
    """Load an export.

    Args:
        path: the exported folder.
        device: where to put the model; CUDA when there is some, if absent.

    Raises:
        BadInput: if the folder is none, a part is missing or is not what the card describes.
    """
    folder = Path(path)
    card = read_card(folder)
    for name, digest in (("model.safetensors", card.sha256), ("items.parquet", card.items_sha256)):
        if (folder / name).exists() and _sha256(folder / name) != digest:
            raise BadInput(f"{folder / name}: is not the one that {CARD} describes; export it again")
    state = load_model(folder / "model.safetensors")
    try:
        items = pq.read_table(folder / "items.parquet").to_pydict()
        users = pq.read_table(folder / "users.parquet").column("id").to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise BadInput(f"{folder}: items.parquet or users.parquet cannot be read ({error}); export it again") from error
    config = card.model
    if config.backbone.name == "backbone":
        local = config.backbone.model_copy(update={"name": str((folder / "backbone").resolve()), "revision": None})
        config = config.model_copy(update={"backbone": local})
    trained = assemble(
        config,
        items["sentence"],
        state,
        n_users=card.users,
        max_items=card.max_items,
        max_item_tokens=card.max_item_tokens,
        device=device or default_device(),
    )
    return Recommender(card, trained, items, users)


def read_card(folder: Path) -> Card:
    """The card of an export.

    Raises:
        BadInput: if there is none, or it is damaged or of another version.
    """
    path = folder / CARD
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("version") != VERSION:
            raise BadInput(f"{path}: version {document.get('version')} is unknown here (known: {VERSION})")
        card = Card.model_validate(document)
    except OSError as error:
        raise BadInput(f"{folder}: is no exported model ({CARD}: {error.strerror or error})") from error
    except (ValueError, AttributeError, ValidationError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: is damaged; export it again") from error
    if not card.intact:
        raise BadInput(f"{path}: was changed after the export; export it again")
    return card
