"""Models of a study beside the architectures of the one that it searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainer.architecture import FIXED_ARMS
from trainer.config import Part, PriorConfig, RunConfig

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


def with_prior(run: RunConfig) -> RunConfig:
    """The same training with the prior from counts, and the rates and the dropout that go well with it.

    Those were found on validation data of Amazon Scientific (docs/results.md); what the run says itself stays.
    """
    model = {"prior": PriorConfig(), "head_dropout": run.model.head_dropout or PRIOR_DROPOUT}
    rates = {**PRIOR_RATES, **run.optimization.rates}
    return run.model_copy(
        update={
            "model": run.model.model_copy(update=model),
            "optimization": run.optimization.model_copy(update={"rates": rates}),
        }
    )


PRIOR_DROPOUT = 0.2
"""In front of the item projection, where there is a prior."""
PRIOR_RATES: Mapping[Part, float] = {"head": 0.1, "prior": 3.0}
"""Learning rates of parts over the others', where there is a prior."""
VARIANTS: Mapping[str, Callable[[RunConfig], RunConfig]] = {DAREC_BASE: darec_base}
"""By the name of the arm that trains it."""
FIXED: tuple[str, ...] = (*FIXED_ARMS, DAREC_BASE)
"""The arms that no search has chosen: they win ties."""
