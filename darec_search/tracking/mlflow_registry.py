"""The registered model of a study: which version is the champion, and why.

Every final model becomes a version. The alias `champion` is what others load, so it moves only to a model that is known
to be better. What that means depends on the data (its fingerprint):

- On the champion's own data the test MRRs decide. The validation MRR would not do: it is what the search maximised and
  what the final run chose its epoch by, so it flatters whoever searched longest. Nothing is opened for it: both figures
  are on record, and where both runs left their users' ranks the version's note says how sure the difference is.
- On other data the two figures say nothing about each other. The alias moves only if the study tested the champion's
  design again on its own data, among its candidates, and had its winner from that comparison.
- A study's own new export takes the place of its old one unless it is worse.

The alias `best-<first eight digits of the fingerprint>` follows the same rule within one dataset, so that the best
model of each stays at hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from darec_search.study import Study
from darec_search.tracking.base import Champion
from darec_search.tracking.records import FINAL
from darec_search.tracking.traces import read_json
from trainer.architecture import Architecture

CHAMPION = "champion"
RANKS = "ranks.parquet"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contender:
    """A final model on its way into the registry.

    Args:
        study: id of its study.
        digest: of the export.
        fingerprint: of the data.
        bits: its architecture.
        weights: all three λ by name.
        value: test MRR.
        ranks: the file of its users' ranks; None where there is none.
        candidates: entries of `promotion.json`.
    """

    study: str
    digest: str
    fingerprint: str
    bits: tuple[int, ...]
    weights: Mapping[str, float]
    value: float
    ranks: Path | None
    candidates: list[dict[str, Any]]

    @property
    def tags(self) -> dict[str, str]:
        """What a version says of itself."""
        return {
            "darec.study": self.study,
            "darec.digest": self.digest,
            "darec.fingerprint": self.fingerprint,
            "darec.bits": json.dumps(list(self.bits)),
            "darec.weights": json.dumps(dict(self.weights), sort_keys=True),
            "darec.test_mrr": repr(self.value),
        }


@dataclass(frozen=True)
class Decision:
    """Whether an alias moves, and why, in one sentence."""

    moves: bool
    why: str


def contender(study: Study) -> Contender | None:
    """A study's exported model, as the registry should know it; None before it was exported and measured."""
    final, best = study.folder / FINAL, study.folder / "best"
    measured, run = read_json(final / "metrics.json"), read_json(final / "run.json")
    if not (best / "architecture.json").exists() or not isinstance(measured, dict) or not isinstance(run, dict):
        return None
    promotion = read_json(study.folder / "promotion.json")
    return Contender(
        study=study.id,
        digest=_folder_digest(best),
        fingerprint=study.fingerprint,
        bits=Architecture.parse(run["model"]["architecture"], study.space.layers).bits,
        weights={name: float(run["losses"][name]) for name in ("align", "contrastive", "collaborative")},
        value=float(measured["mrr"]),
        ranks=final / RANKS if (final / RANKS).exists() else None,
        candidates=promotion.get("candidates", []) if isinstance(promotion, dict) else [],
    )


def register(client: MlflowClient, name: str, run_id: str, source: str, new: Contender) -> int:
    """Make a version of a run's model, once, and let the aliases move if it is better.

    Args:
        client: where.
        name: of the registered model.
        run_id: the final run.
        source: URI of the model's folder.
        new: the model.

    Returns:
        The version.
    """
    found = _version(client, name, run_id, new.digest)
    if found is None:
        created = client.create_model_version(name, source, run_id, new.tags, await_creation_for=0)
        version = int(created.version)
    else:
        version = int(found.version)
    best = f"best-{new.fingerprint[:8]}"
    _move(client, name, best, version, new)
    why = _move(client, name, CHAMPION, version, new)
    if found is None or not found.description:
        weights = ", ".join(f"{weight} {value:g}" for weight, value in new.weights.items())
        design = f"`{Architecture(new.bits).text}` at λ: {weights}"
        note = f"{design}. Test MRR {new.value:.4f} on the data {new.fingerprint[:8]}.\n\n{why}"
        client.update_model_version(name, str(version), note)
    return version


def _move(client: MlflowClient, name: str, alias: str, version: int, new: Contender) -> str:
    """Let an alias go to a version if it should. Done again after a cut, it comes to the same end."""
    holder = _holder(client, name, alias)
    old = _described(holder) if holder is not None else None
    if holder is not None and int(holder.version) == version:
        return f"It holds the alias {alias}."
    if holder is not None and old is None:
        return f"The {alias} stayed version {holder.version}, which does not say on what data it was measured."
    decision = decide(new, old, _ranks_p_value(client, name, old, new) if alias == CHAMPION else None)
    if decision.moves:
        client.set_registered_model_alias(name, alias, str(version))
    return decision.why


def decide(new: Contender, old: Champion | None, p_value: float | None = None) -> Decision:
    """Whether a new model takes an alias from its holder.

    Args:
        new: the new model.
        old: who holds the alias; None if nobody does.
        p_value: two-sided, of the difference of the two on the same users, where it is known.
    """
    if old is None:
        return Decision(True, "It is the champion because there was none.")
    other = f"version {old.version} (test MRR {old.value:.4f}, data {old.fingerprint[:8]})"
    if old.fingerprint == new.fingerprint:
        chance = "" if p_value is None else f", p = {p_value:.2g} on the same users"
        if new.value > old.value:
            return Decision(True, f"It took the place of {other}, which it beats on the same data{chance}.")
        if new.study == old.study and new.value == old.value:
            return Decision(True, f"It took the place of {other}, an earlier export of the same study.")
        return Decision(False, f"The champion stayed {other}, which it does not beat on the same data{chance}.")
    if any(_same_design(candidate, old) and candidate.get("mean") is not None for candidate in new.candidates):
        return Decision(True, f"It took the place of {other}, whose design was tested again on this data.")
    return Decision(False, f"The champion stayed {other}: on other data, without a test of its design on this.")


def current(client: MlflowClient, name: str) -> Champion | None:
    """The champion; None if there is none, or if it does not say what it is.

    Raises:
        MlflowException: if MLflow does not answer.
    """
    holder = _holder(client, name, CHAMPION)
    return _described(holder) if holder is not None else None


def _holder(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, or no such alias
            return None
        raise


def _described(version: ModelVersion) -> Champion | None:
    tags = version.tags
    try:
        return Champion(
            model=version.name,
            version=int(version.version),
            study=tags["darec.study"],
            fingerprint=tags["darec.fingerprint"],
            bits=tuple(json.loads(tags["darec.bits"])),
            weights=json.loads(tags["darec.weights"]),
            value=float(tags["darec.test_mrr"]),
        )
    except (KeyError, ValueError, TypeError):
        logger.warning("version %s of %s does not say what it is", version.version, version.name)
        return None


def _version(client: MlflowClient, name: str, run_id: str, digest: str) -> ModelVersion | None:
    """The version of this run and content, if there is one; the registered model is made on the way."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    return next((v for v in versions if v.name == name and v.tags.get("darec.digest") == digest), None)


def _same_design(candidate: Mapping[str, Any], champion: Champion) -> bool:
    """Whether a re-tested arm is the champion's design; a candidate names those λ alone that were searched."""
    weights = candidate.get("weights", {})
    same = all(champion.weights.get(name) == value for name, value in weights.items())
    return same and tuple(candidate.get("bits", ())) == champion.bits


def _ranks_p_value(client: MlflowClient, name: str, old: Champion | None, new: Contender) -> float | None:
    """Paired over the users, if both are on the same data and left their ranks."""
    if old is None or old.fingerprint != new.fingerprint or old.study == new.study or new.ranks is None:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from trainer.metrics import paired_p_value, per_user_metrics

    columns = ["user", "winner"]
    try:
        with tempfile.TemporaryDirectory(prefix="darec-search-") as folder:
            run_id = client.get_model_version(name, str(old.version)).run_id or ""
            theirs = pq.read_table(client.download_artifacts(run_id, RANKS, folder), columns=columns)
        ours = pq.read_table(new.ranks, columns=columns)
    except (MlflowException, OSError, pa.ArrowException):  # an old run without ranks; the means decide alone
        return None
    by_user = dict(zip(theirs["user"].to_pylist(), theirs["winner"].to_pylist(), strict=True))
    if set(by_user) != set(ours["user"].to_pylist()):
        return None
    ranks = (ours["winner"].to_pylist(), [by_user[user] for user in ours["user"].to_pylist()])
    first, second = (per_user_metrics(torch.tensor(found))["mrr"] for found in ranks)
    return paired_p_value(first, second)


def _folder_digest(folder: Path) -> str:
    """Of all names and sizes and of the card, which holds the hash of the weights."""
    digest = hashlib.sha256((folder / "architecture.json").read_bytes())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}:{file.stat().st_size};".encode())
    return digest.hexdigest()[:16]
