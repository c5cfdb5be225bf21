"""What a study carries off.

Format `torch` is a folder that recommends by itself:

architecture.json     the card: bits, λ, model, backbone, metrics with their split and data fingerprint, versions
model.safetensors     trained tensors alone
fold_in.safetensors   CF vectors of unseen users from their histories, where there is a CF model
relations.safetensors what the items have to do with each other, where there is a prior from counts
backbone/             the frozen model and its tokenizer, for a built-in or local one; a hub id stays an id in the card
items.parquet         id, title and sentence of every item, in index order
users.parquet         id of every user that was trained on, in index order
README.md, architecture.png

`onnx-scores` has scores.onnx in place of the model's files, `card` only the card, the README and the picture.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.torch import save_file

from darec_search.card import CARD, Card, Format, Sample, Task, Unseen, read_card
from darec_search.digests import sha256
from darec_search.identity import identity_of
from darec_search.recommender import FOLD_IN, Recommendation, Recommender, load
from darec_search.study import Study
from darec_search.trial import Fidelity
from darec_search.verification import SAMPLED, Verified, evenly, verify
from trainer.architecture import Architecture
from trainer.config import RunConfig
from trainer.data.dataset import Dataset
from trainer.data.ragged import read_table
from trainer.data.relations import RELATIONS_FILE
from trainer.errors import BadInput
from trainer.inference import FoldIn, TrainedModel, default_device, restore
from trainer.metrics import ranking_metrics
from trainer.models.backbones import is_local
from trainer.storage import absolute
from trainer.training.model_file import load_model
from trainer.training.result import RunResult, write_atomic
from trainer.training.warm import Warm

__all__ = ["Card", "Recommendation", "Recommender", "export", "load", "read_card"]

_JUDGED = 500
"""Users on whom the fold-in is measured at most."""
_TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-2}
"""How far an export's mean reciprocal rank may lie from the study's; exports compute in float32."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    card: Card
    verified: Verified | None
    """What a fresh process found; None for a card alone, or if it was not asked."""


@dataclass(frozen=True)
class _Final:
    """A study's final model, and what it was trained on."""

    study: Study
    config: RunConfig
    result: RunResult
    dataset: Dataset
    warm: Warm

    @property
    def folder(self) -> Path:
        return self.study.folder / "final"

    def model(self) -> TrainedModel:
        return restore(self.config, load_model(self.folder / "model.safetensors"), self.warm, default_device())


def export(study: Study, out: Path, format: Format = "torch", *, verified: bool = True) -> Exported:
    """Write the study's final model to a folder of its own, whole or not at all.

    Args:
        study: a study whose final run is done.
        out: the folder; an earlier export in it is replaced.
        format: what is written besides card, README and picture.
        verified: a fresh process has to reproduce the recorded metric on a sample of users from what was written.

    Raises:
        BadInput: if there is no final run yet, its dataset is gone or changed, `out` cannot be used, or the format
            needs packages that are missing.
        NotReproduced: if the fresh process does not find the recorded metric; `out` is left as it was.
    """
    if format == "onnx-scores":
        from darec_search.onnx_export import require_onnx

        require_onnx()
    final = _final(study)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / CARD).exists())):
        raise BadInput(f"{out}: holds something else than an export; choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        card = _write(final, temporary, format)
        found = verify(temporary, final.dataset.location) if verified and format != "card" else None
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(card, found)


def _final(study: Study) -> _Final:
    folder = study.folder / "final"
    result = study.final_result()
    if result is None or result.status != "finished" or not (folder / "model.safetensors").exists():
        where = study.config.location
        raise BadInput(f"{where}: has no final model yet; run `darec-search promote {where}` first")
    dataset = study.dataset()
    config = RunConfig.model_validate_json((folder / "run.json").read_text(encoding="utf-8"))
    data = config.data.model_copy(update={"path": dataset.location})
    # The commit that was trained on, whatever is the hub's newest by now.
    trained_on = {"revision": result.revision or config.model.backbone.revision}
    model = config.model.model_copy(update={"backbone": config.model.backbone.model_copy(update=trained_on)})
    cache = absolute(study.config.cache)
    config = config.model_copy(update={"data": data, "model": model, "cache": cache})
    return _Final(study, config, result, dataset, Warm())


def _write(final: _Final, folder: Path, format: Format) -> Card:
    from darec_search.report import architecture_picture

    model = final.model()
    shutil.copyfile(final.folder / "model.safetensors", folder / "model.safetensors")
    write_tables(final.dataset, folder)
    unseen, fold_in = _unseen(model, final.dataset)
    if fold_in is not None:
        save_file({"weight": fold_in.weight.contiguous(), "bias": fold_in.bias.contiguous()}, folder / FOLD_IN)
        (folder / FOLD_IN).chmod(0o644)  # safetensors lets nobody else read it
    materials = final.warm.materials(final.config)
    backbone, relations_sha256 = materials.backbone, None
    if materials.relations is not None:
        materials.relations.save(folder / RELATIONS_FILE)
        relations_sha256 = sha256(folder / RELATIONS_FILE)
    card = _card(final, copy_backbone(backbone.name, folder), backbone.revision, folder).model_copy(
        update={
            "unseen": unseen,
            "sample": _sample(final, model),
            "format": format,
            "relations_sha256": relations_sha256,
        }
    )
    if format == "onnx-scores":
        from darec_search.onnx_export import write_scores

        write_atomic(folder / CARD, card.model_copy(update={"format": "torch"}).sealed().model_dump_json())
        write_scores(load(folder, device="cpu"), final.dataset, folder)
    _keep(folder, format)
    card = card.sealed()
    write_atomic(folder / CARD, card.model_dump_json(indent=2))
    architecture_picture(Architecture(card.bits), folder / "architecture.png")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")
    return card


def _keep(folder: Path, format: Format) -> None:
    """Remove what only another format holds."""
    if format == "torch":
        return
    tables = ("items.parquet", "users.parquet") if format == "card" else ()
    for name in ("model.safetensors", FOLD_IN, RELATIONS_FILE, *tables):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "backbone", ignore_errors=True)


def write_tables(dataset: Dataset, folder: Path) -> None:
    """Write items.parquet and users.parquet."""
    columns = {"id": dataset.item_ids, "title": dataset.titles, "sentence": dataset.sentences}
    pq.write_table(pa.table(columns), folder / "items.parquet")
    pq.write_table(pa.table({"id": dataset.user_ids}), folder / "users.parquet")


def copy_backbone(name: str, folder: Path) -> str:
    """Copy a backbone's folder beside the card; returns its name there. A hub id stays an id."""
    if not is_local(name):
        return name
    shutil.copytree(name, folder / "backbone", ignore=_only_model_files)
    return "backbone"


def _only_model_files(folder: str, names: list[str]) -> list[str]:
    """For `copytree`: leave out weights that are not safetensors, and folders."""
    keep = (".json", ".safetensors", ".txt", ".model")
    return [name for name in names if not name.endswith(keep) or (Path(folder) / name).is_dir()]


def _unseen(model: TrainedModel, dataset: Dataset) -> tuple[Unseen | None, FoldIn | None]:
    """What the fold-in is worth on users that it was not fitted on, and the one that is fitted on all."""
    fitted, judged = np.arange(1, dataset.n_users, 2), evenly(np.arange(0, dataset.n_users, 2), _JUDGED)
    half = model.fitted_fold_in(dataset, fitted) if len(fitted) else None
    if half is None:
        return None, None

    def mrr(trained: TrainedModel, known: bool) -> float:
        return ranking_metrics(trained.rank(dataset, "validation", known_users=known, chosen=judged).ranks)["mrr"]

    average, folded = mrr(model, False), mrr(model.folding_in(half), False)
    unseen = Unseen(
        default="fold_in" if folded > average else "average",
        users=len(judged),
        average=average,
        fold_in=folded,
        known=mrr(model, True),
    )
    return unseen, model.fitted_fold_in(dataset)


def _sample(final: _Final, model: TrainedModel) -> Sample:
    """What the study has found for a few users: its ranks on the test split, or now on validation where it has none."""
    chosen = evenly(np.arange(final.dataset.n_users), SAMPLED)
    tolerance = _TOLERANCE[final.config.execution.precision]
    measured = final.folder / "ranks.parquet"
    if measured.exists():
        ranks: NDArray[np.float64] = np.array(read_table(measured).column("winner").to_pylist())[chosen]
        split = "test"
    else:
        ranks = model.rank(final.dataset, "validation", known_users=True, chosen=chosen).ranks.numpy()
        split = "validation"
    return Sample.model_validate(
        {"split": split, "users": len(chosen), "mrr": float((1 / ranks).mean()), "tolerance": tolerance}
    )


def _card(final: _Final, backbone: str, revision: str | None, folder: Path) -> Card:
    study, config, dataset = final.study, final.config, final.dataset
    metrics = {"validation": final.result.metrics}
    measured = final.folder / "metrics.json"
    if measured.exists():
        test = json.loads(measured.read_text(encoding="utf-8"))
        metrics["test"] = {name: value for name, value in test.items() if name not in ("split", "users")}
    architecture = Architecture.parse(config.model.architecture, study.space.layers)
    named = config.model.backbone.model_copy(update={"name": backbone, "revision": revision})
    return Card(
        study=study.config.name,
        study_id=study.id,
        architecture=architecture.text,
        bits=architecture.bits,
        model=config.model.model_copy(update={"backbone": named}),
        losses=config.losses,
        seed=config.seed,
        epochs=config.optimization.epochs,
        best_epoch=final.result.best_epoch,
        users=dataset.n_users,
        items=dataset.n_items,
        max_items=config.data.max_items,
        max_item_tokens=config.data.max_item_tokens,
        exclude_seen=config.data.exclude_seen,
        fingerprint=dataset.fingerprint,
        metrics=metrics,
        versions=study.environment["packages"],
        commit=study.environment["commit"],
        sha256=sha256(folder / "model.safetensors"),
        items_sha256=sha256(folder / "items.parquet"),
        task=Task(
            identity=identity_of(study.environment["identity"], config),
            fidelity=Fidelity(users_fraction=config.data.users_fraction, epochs=config.optimization.epochs),
        ),
    )


_USES = {
    "torch": """    darec-search recommend . --history ID,ID,...
    darec-search serve .
    darec-search evaluate . DATASET""",
    "onnx-scores": """`scores.onnx` takes `items` [batch, length], int64 places in `items.parquet`, oldest first, filled
with -1 on the left, and `users` [batch], int64 places in `users.parquet`, -1 for others; it gives `scores`
[batch, items], float32.""",
    "card": "The card alone, without a model.",
}


def _readme(card: Card) -> str:
    table = "\n".join(
        f"| {split} | " + " | ".join(f"{values[name]:.4f}" for name in ("mrr", "recall@10", "ndcg@10")) + " |"
        for split, values in card.metrics.items()
    )
    weights = f"λ1 (align) {card.losses.align:g}, λ2 (contrastive) {card.losses.contrastive:g}, "
    weights += f"λ3 (collaborative) {card.losses.collaborative:g}"
    prior = " Scores are the sum of the model's and those of a prior from counts." if card.model.prior else ""
    masked = "but those of the user's history" if card.exclude_seen else "none is masked"
    return f"""# {card.study}: DARec `{card.architecture}`

![architecture](architecture.png)

S is a serial, P a parallel adapter; one group per DALayer: causal, context, recommendation. {weights}.{prior}

| split | MRR | Recall@10 | NDCG@10 |
| --- | --- | --- | --- |
{table}

All {card.items:,} items are ranked, {masked}; {card.users:,} users; data fingerprint `{card.fingerprint[:16]}`.

{_USES[card.format]}

`model.architecture: PATH` in a run file trains the same architecture on other data.
"""
