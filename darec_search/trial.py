"""A trial: what was asked of a worker. Its outcome is a `trainer.training.result.RunResult`."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field

from darec_search.space import Point
from darec_search.variants import VARIANTS
from trainer.config import Fraction, Positive, Section

Stage = Literal["weights", "architecture", "joint", "retest", "variant", "full", "audit"]
"""`weights`, `architecture` and `joint` belong to the search; `retest`, `variant` (a re-test of another model than the
searched one, which its arm names) and `full` (an arm on all data, whose model is kept) to the promotion; `audit`
is a training on all data that tells whether the search's part of the data does."""
SEARCH_STAGES: tuple[Stage, ...] = ("weights", "architecture", "joint")


class Fidelity(Section):
    """How much of the full training a trial gets."""

    users_fraction: Fraction = Field(description="Fraction b of the users.")
    epochs: Positive = Field(description="Passes over them.")

    @property
    def cost(self) -> float:
        """Passes over all users that it is worth; the time of a training goes with it."""
        return self.users_fraction * self.epochs


class TrialSpec(Section):
    """One trial as `trials/<id>/spec.json` holds it. Build it with `make_spec`."""

    id: str = Field(
        pattern=r"^[0-9a-zA-Z_-]+$",
        description="Hash of study, bits, weights, fidelity, seed, variant, and if the model is kept.",
    )
    number: int = Field(ge=0, description="Order of asking, from 0.")
    stage: Stage = Field(description="Which part of the strategy asked for it.")
    bits: tuple[int, ...] = Field(description="3L bits, layer by layer.")
    weights: dict[str, float] = Field(description="Loss weights by name: align, contrastive, collaborative.")
    seed: int = Field(description="Seed of the run.")
    fidelity: Fidelity
    arm: str | None = Field(None, description="Name of a fixed arm or candidate: serial, darec_base, best-1, …")
    told: tuple[str, ...] = Field(
        (), description="Trials whose results the sampler was told between the proposal before this one and this one."
    )

    @property
    def point(self) -> Point:
        """The design under trial."""
        return Point(self.bits, self.weights)

    @property
    def variant(self) -> str | None:
        """The key of `VARIANTS` that it trains, if that is not the searched model."""
        return self.arm if self.arm in VARIANTS else None

    @property
    def keeps_model(self) -> bool:
        """Whether the trained model is wanted, not only its metrics."""
        return self.stage == "full"


def make_spec(
    study: str, number: int, stage: Stage, point: Point, seed: int, fidelity: Fidelity, arm: str | None = None
) -> TrialSpec:
    """A spec with its id. The same question has the same id, so it is never paid for twice."""
    key: dict[str, object] = {
        "study": study,
        "bits": list(point.bits),
        "weights": dict(sorted(point.weights.items())),
        "fidelity": fidelity.model_dump(),
        "seed": seed,
    }
    if stage == "full":  # a search trial at full fidelity has the same answer, but left no model
        key["keeps_model"] = True
    if arm in VARIANTS:
        key["variant"] = arm
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return TrialSpec(
        id=digest[:12], number=number, stage=stage, bits=point.bits, weights=dict(point.weights), seed=seed,
        fidelity=fidelity, arm=arm,
    )  # fmt: skip
