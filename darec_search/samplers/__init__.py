"""Samplers: where the next design comes from. A sampler is one file and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from darec_search.space import SearchSpace
from trainer.errors import BadInput

if TYPE_CHECKING:
    from darec_search.samplers.base import Sampler

SAMPLERS = {
    "ax_bayes": "darec_search.samplers.ax_bayes:AxBayesSampler",
    "prob_reparam": "darec_search.samplers.prob_reparam:ProbReparamSampler",
    "random": "darec_search.samplers.random:RandomSampler",
    "optuna_tpe": "darec_search.samplers.optuna_sampler:TPESampler",
    "optuna_gp": "darec_search.samplers.optuna_sampler:GPSampler",
    "optuna_cmaes": "darec_search.samplers.optuna_cmaes:CmaEsSampler",
    "grid": "darec_search.samplers.grid:GridSampler",
}

_TOGETHER = ("ax_bayes",)
"""Samplers that think once for a whole block, in a time that is worth saving."""
_ALONE_UP_TO = 64
"""Trials under way up to which the sampler keeps up with trials of minutes, one proposal at a time."""
_BLOCKS = 16
"""Blocks that are under way at a time beyond that."""


def together(name: str, width: int) -> int:
    """How many proposals make a block, which knows the same results, with `width` trials under way: 1 up to 64."""
    return max(1, width // _BLOCKS) if name in _TOGETHER and width > _ALONE_UP_TO else 1


def create(name: str, space: SearchSpace, seed: int, *, costs: Sequence[float] = (), **options: Any) -> Sampler:
    """A sampler by name.

    Args:
        name: a key of `SAMPLERS`.
        space: the designs.
        seed: with the results it decides every proposal.
        costs: of cheaper fidelities, as for `Sampler.use_fidelities`; none by default.
        options: fields of the sampler's `Options`.

    Raises:
        BadInput: if the name or an option is unknown, an option has an impossible value, or the sampler does not learn
            from cheaper fidelities.
    """
    if name not in SAMPLERS:
        raise BadInput(f"search.sampler: {name!r} is no sampler; choose one of {', '.join(SAMPLERS)}")
    module, _, class_name = SAMPLERS[name].partition(":")
    sampler = getattr(import_module(module), class_name)
    try:
        chosen = sampler.Options(**options)
    except ValidationError as error:
        raise BadInput(_explain(name, error, list(sampler.Options.model_fields))) from error
    created = cast("Sampler", sampler(space, seed, chosen))
    if costs and not created.learns_from_fidelities:
        raise BadInput(
            f"search.fidelities: {name} does not learn from cheaper trials; choose ax_bayes as search.sampler, or "
            "leave fidelities out"
        )
    if costs:
        created.use_fidelities(costs)
    return created


def _explain(name: str, error: ValidationError, known: list[str]) -> str:
    problems = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        message = f"{problem['msg']}, got {problem['input']!r}"
        if problem["type"] == "extra_forbidden":
            message = f"{name} has no such option; it knows {', '.join(known) or 'none'}"
        problems.append(f"search.sampler_options.{field}: {message}")
    return "; ".join(problems)
