"""Models that DARec is compared with: references that are counted, and baselines that are trained as DARec is."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from trainer.baselines.base import Reference, evaluate, ranked_by, reference_ranks
from trainer.baselines.bert4rec import BERT4Rec
from trainer.baselines.catalogue import Catalogue
from trainer.baselines.fdsa import FDSA
from trainer.baselines.gru4rec import GRU4Rec
from trainer.baselines.itemknn import ItemKNN
from trainer.baselines.neighbours import Neighbours
from trainer.baselines.p5 import P5
from trainer.baselines.popularity import Popularity
from trainer.baselines.recformer import RecFormer
from trainer.baselines.sasrec import SASRec
from trainer.baselines.sequence import Baseline, Options
from trainer.baselines.unisrec import UniSRec
from trainer.config import BaselineConfig
from trainer.errors import BadInput

REFERENCES: dict[str, type[Reference]] = {"popularity": Popularity, "neighbours": Neighbours, "itemknn": ItemKNN}
"""References without training, by the name that a run file gives (`baseline.name`)."""

IN_EVERY_TABLE = ("popularity", "neighbours")
"""The references of a study's final table: the floor, and the best that counting does."""

BASELINES: dict[str, type[Baseline]] = {
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "fdsa": FDSA,
    "unisrec": UniSRec,
    "p5": P5,
    "recformer": RecFormer,
}
"""Trained baselines by the name that a run file gives (`baseline.name`)."""


def baseline_options(config: BaselineConfig) -> Options:
    """The options of a baseline, checked.

    Raises:
        BadInput: if the baseline is unknown or an option is wrong.
    """
    kinds: dict[str, type[Options]] = {
        **dict.fromkeys(REFERENCES, Options),
        **{name: baseline.Options for name, baseline in BASELINES.items()},
    }
    if config.name not in kinds:
        raise BadInput(f"baseline.name: there is no {config.name!r}; choose one of {', '.join(kinds)}")
    try:
        return kinds[config.name].model_validate(config.options)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(str(part) for part in ("baseline.options", *problem["loc"]))
        unknown = problem["type"] == "extra_forbidden"
        message = "unknown option; check its spelling" if unknown else problem["msg"].removeprefix("Value error, ")
        raise BadInput(f"{path}: {message}") from error


def create_baseline(config: BaselineConfig, catalogue: Catalogue, max_items: int, seed: int) -> Baseline:
    """A fresh trained baseline whose initial weights depend on the seed alone.

    Args:
        config: which one, with its options.
        catalogue: the items.
        max_items: longest history that it reads.
        seed: of the initial weights.

    Raises:
        BadInput: if the baseline is unknown, or an option is wrong or asks for what the items do not have.
    """
    options = baseline_options(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BASELINES[config.name].build(catalogue, max_items, options)


__all__ = [
    "BASELINES",
    "IN_EVERY_TABLE",
    "REFERENCES",
    "Baseline",
    "Catalogue",
    "Reference",
    "baseline_options",
    "create_baseline",
    "evaluate",
    "ranked_by",
    "reference_ranks",
]
