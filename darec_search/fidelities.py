"""How much of the full training a trial gets: the search's own fidelity, cheaper ones, and that of the final models."""

from __future__ import annotations

import math

from darec_search.config import StudyConfig
from darec_search.trial import Fidelity
from trainer.errors import BadInput


def trial_fidelity(config: StudyConfig) -> Fidelity:
    """How much of the full training a trial of a study's search gets."""
    return Fidelity(
        users_fraction=config.data.search_fraction, epochs=config.search.epochs or config.optimization.epochs
    )


def full_fidelity(config: StudyConfig) -> Fidelity:
    """How much training the winner and the fixed arms get: all users."""
    return Fidelity(users_fraction=1.0, epochs=config.promotion.epochs or config.optimization.epochs)


def cheaper_fidelities(config: StudyConfig) -> list[Fidelity]:
    """The cheaper fidelities that the search may choose, dearest first.

    Raises:
        BadInput: if one is not cheaper than the search's other trials, or has more epochs or users; or if two cost the
            same.
    """
    whole = trial_fidelity(config)
    found: list[Fidelity] = []
    for place, trial in enumerate(config.search.fidelities):
        fidelity = Fidelity(
            users_fraction=trial.users_fraction or whole.users_fraction, epochs=trial.epochs or whole.epochs
        )
        where = f"search.fidelities.{place}"
        if fidelity.users_fraction > whole.users_fraction or fidelity.epochs > whole.epochs or fidelity == whole:
            raise BadInput(
                f"{where}: {fidelity.epochs} epochs on {fidelity.users_fraction:g} of the users is no cheaper trial "
                f"than the search's own, {whole.epochs} on {whole.users_fraction:g}; lower one of them, or leave it out"
            )
        if any(math.isclose(fidelity.cost, other.cost) for other in found):
            raise BadInput(f"{where}: costs as much as another one; leave one of them out")
        found.append(fidelity)
    return sorted(found, key=lambda fidelity: -fidelity.cost)
