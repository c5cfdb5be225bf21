"""Models that a study compares with beside the architectures of its own model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainer.architecture import FIXED_ARMS
from trainer.config import RunConfig

DAREC_BASE = "darec_base"


def darec_base(run: RunConfig) -> RunConfig:
    """The same training of DARec_base, the paper's Variation 1 (Section 3.2.1).

    Causal mask alone, a serial adapter after attention and one after the feed-forward network, no router, no
    collaborative vectors.
    """
    collaborative = run.model.collaborative.model_copy(update={"model": "none"})
    base = {"architecture": "serial", "masks": ("causal",), "collaborative": collaborative}
    losses = run.losses.model_copy(update={"collaborative": 0.0})
    return run.model_copy(update={"model": run.model.model_copy(update=base), "losses": losses})


VARIANTS: Mapping[str, Callable[[RunConfig], RunConfig]] = {DAREC_BASE: darec_base}
"""By the name of the arm that trains it."""
FIXED: tuple[str, ...] = (*FIXED_ARMS, DAREC_BASE)
"""The arms that no search has chosen: they win ties."""
