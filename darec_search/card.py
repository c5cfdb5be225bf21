"""The architecture card: `architecture.json`, what an export says about itself.

Its JSON Schema is published as docs/schemas/architecture-card.v1.json (`python -m darec_search.card` prints it). A
card, or the folder that holds one, may stand wherever a config wants an architecture.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from darec_search.trial import Fidelity
from trainer.architecture import FIXED_ARMS
from trainer.config import LossConfig, ModelConfig, Positive, Section
from trainer.errors import BadInput

VERSION: Literal[1] = 1
CARD = "architecture.json"
SCHEMA_ID = "https://github.com/darec-search/darec-search/blob/main/docs/schemas/architecture-card.v1.json"
Format = Literal["torch", "onnx-scores", "card"]


class Sample(Section):
    """A few users of the study's data, by whose ranks an export proves itself."""

    split: Literal["validation", "test"]
    users: Positive = Field(description="How many: evenly spaced in the dataset's order, the first one among them.")
    mrr: float = Field(description="Their mean reciprocal rank, as the study's own model has it.")
    tolerance: float = Field(description="How far the export's may lie from it; wider for runs in bfloat16.")


class Unseen(Section):
    """Users who were not trained on: where their CF vector comes from, and what each way was worth."""

    default: Literal["average", "fold_in"] = Field(description="The better one, which is used.")
    users: Positive = Field(description="Trained users who were treated as unseen, none of whom the fold-in has seen.")
    average: float = Field(description="Their validation MRR with the average user's vector.")
    fold_in: float = Field(description="With a vector from their history.")
    known: float = Field(description="With their own trained vectors.")


class Task(Section):
    """What the training's outcome depends on, so that another study knows whether the result counts as its own."""

    identity: dict[str, Any] = Field(description="Data, model, losses, optimisation, as a study folder has them.")
    fidelity: Fidelity = Field(description="Users and epochs of the training.")


class Card(Section):
    """`architecture.json`."""

    version: Literal[1] = Field(VERSION, description="Version of this format.")
    format: Format = Field("torch", description="What lies beside the card.")
    study: str = Field(description="Name of the study.")
    study_id: str = Field(description="Its identity: a hash of all that changes a trial's outcome.")
    architecture: str = Field(description="One group of S/P letters per DALayer.")
    bits: tuple[Annotated[int, Field(ge=0, le=1)], ...] = Field(
        description="Layer by layer: causal, context, recommendation; 0 serial, 1 parallel."
    )
    model: ModelConfig = Field(description="The model; a backbone called `backbone` is the folder beside the card.")
    losses: LossConfig = Field(description="Loss weights λ and their sampling.")
    seed: int
    epochs: int = Field(description="Epochs of the final run.")
    best_epoch: int | None
    users: Positive = Field(description="Users that it was trained on.")
    items: Positive = Field(description="Items that it ranks.")
    max_items: Positive = Field(description="Newest items of a history that are read.")
    max_item_tokens: Positive = Field(description="Tokens of an item sentence that are read.")
    exclude_seen: bool = Field(False, description="Whether its metrics leave out the items of the history.")
    fingerprint: str = Field(description="SHA-256 fingerprint of the dataset.")
    metrics: dict[str, dict[str, float]] = Field(description="Metrics by split.")
    versions: dict[str, str | None] = Field(description="Package versions of the study.")
    commit: str | None = Field(description="Commit of the code, when known.")
    sha256: str = Field(description="SHA-256 of model.safetensors.")
    items_sha256: str = Field(description="SHA-256 of items.parquet.")
    relations_sha256: str | None = Field(
        None, description="SHA-256 of relations.safetensors, for a model with a prior."
    )
    sample: Sample | None = Field(None, description="By what the export was verified.")
    unseen: Unseen | None = Field(None, description="CF vectors of unseen users; a model without a CF model has none.")
    task: Task | None = Field(None, description="What the outcome depends on.")
    card_sha256: str = Field("", description="SHA-256 of this card's other fields.")

    def sealed(self) -> Card:
        """The same card with its own hash."""
        return self.model_copy(update={"card_sha256": self._digest()})

    @property
    def intact(self) -> bool:
        """Whether the card is as it was sealed. A flipped bit of an architecture would fit the tensors all the same."""
        return self.card_sha256 == self._digest()

    def _digest(self) -> str:
        document = self.model_dump(mode="json", exclude={"card_sha256"})
        # Fields that older writers of this version did not have; theirs are read as these.
        for name in ("format", "sample", "unseen", "task", "relations_sha256", "exclude_seen"):
            if document[name] == type(self).model_fields[name].default:
                del document[name]
        for name in ("prior", "item_text", "head_dropout"):
            if document["model"][name] == ModelConfig.model_fields[name].default:
                del document["model"][name]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def read_card(path: Path) -> Card:
    """A card, by its file or by the folder that holds it.

    Raises:
        BadInput: if there is none, or it is damaged or of another version.
    """
    file = path / CARD if path.is_dir() or not path.exists() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document.get("version") != VERSION:
            raise BadInput(f"{file}: version {document.get('version')} is unknown here (known: {VERSION})")
        card = Card.model_validate(document)
    except OSError as error:
        raise BadInput(f"{path}: is no exported model ({CARD}: {error.strerror or error})") from error
    except (ValueError, AttributeError, ValidationError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file}: is damaged; export it again") from error
    if not card.intact:
        raise BadInput(f"{file}: was changed after the export; export it again")
    return card


def architecture_text(text: str) -> str:
    """An architecture as a config names it: the text itself, or that of the card at this path.

    The one place where paths become architectures; what it returns is `serial`, `parallel` or groups of letters.

    Args:
        text: `serial`, `parallel`, `SPS-PPS`, a card's file, or a folder that holds a card.

    Raises:
        BadInput: if the path holds no usable card.
    """
    a_path = text.endswith(".json") or "/" in text or (Path(text) / CARD).is_file()
    if text in FIXED_ARMS or not a_path:
        return text
    return read_card(Path(text)).architecture


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a card as it is written."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **Card.model_json_schema(mode="serialization"),
        "title": "darec-search architecture card, version 1",
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
