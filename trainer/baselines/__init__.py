"""Models that DARec is compared with: references that are counted, and baselines that are trained as DARec is."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from trainer.baselines.base import Reference, evaluate, reference_ranks
from trainer.baselines.bert4rec import BERT4Rec
from trainer.baselines.gru4rec import GRU4Rec
from trainer.baselines.neighbours import Neighbours
from trainer.baselines.popularity import Popularity
from trainer.baselines.sasrec import SASRec
from trainer.baselines.sequence import Options, SequenceModel
from trainer.config import BaselineConfig
from trainer.errors import BadInput

REFERENCES: dict[str, type[Reference]] = {"popularity": Popularity, "neighbours": Neighbours}
"""References without training, by the name that they have in a study's table."""

BASELINES: dict[str, type[SequenceModel]] = {"gru4rec": GRU4Rec, "sasrec": SASRec, "bert4rec": BERT4Rec}
"""Trained baselines by the name that a run file gives (`baseline.name`)."""


def baseline_options(config: BaselineConfig) -> Options:
    """The options of a baseline, checked.

    Raises:
        BadInput: if the baseline is unknown or an option is wrong.
    """
    if config.name not in BASELINES:
        raise BadInput(f"baseline.name: there is no {config.name!r}; choose one of {', '.join(BASELINES)}")
    try:
        return BASELINES[config.name].Options.model_validate(config.options)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(str(part) for part in ("baseline.options", *problem["loc"]))
        unknown = problem["type"] == "extra_forbidden"
        message = "unknown option; check its spelling" if unknown else problem["msg"].removeprefix("Value error, ")
        raise BadInput(f"{path}: {message}") from error


def create_baseline(config: BaselineConfig, n_items: int, max_items: int, seed: int) -> SequenceModel:
    """A fresh baseline whose initial weights depend on the seed alone.

    Args:
        config: which one, with its options.
        n_items: items of the catalogue.
        max_items: longest history that it reads.
        seed: of the initial weights.

    Raises:
        BadInput: if the baseline is unknown or an option is wrong.
    """
    options = baseline_options(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BASELINES[config.name](n_items, max_items, options)


__all__ = [
    "BASELINES",
    "REFERENCES",
    "Reference",
    "SequenceModel",
    "baseline_options",
    "create_baseline",
    "evaluate",
    "reference_ranks",
]
