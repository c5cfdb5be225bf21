"""How large a reproduction is. Everything here is a field of a run file, or says how many trainings there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from darec_search.reproduce.methods import Changes
from darec_search.reproduce.published import TABLE_3
from darec_search.variants import PRIOR_DROPOUT, PRIOR_RATES


@dataclass(frozen=True)
class Scale:
    """The size of a reproduction.

    Args:
        name: on the command line.
        says: what it is for.
        common: fields of every training.
        darec: further fields of DARec and its parts.
        baseline: further fields of trained baselines.
        methods: further fields by method.
        search: fields in which a search's trainings differ; `search_of` has those of single kinds.
        search_of: the same by kind of method, and by method.
        figures: fields in which the trainings of figures differ from those of Table 2.
        too_slow: methods that take part only if they are named.
        trials: of every method's search; fewer where it has fewer settings to try.
        sampler: that proposes them.
        sampler_options: its options.
        seeds: of every method's final trainings.
        table_3: whether the settings that the paper gives for the dataset hold.
        cpus: of a training; also its threads.
        gpus: of a training.
    """

    name: str
    says: str
    common: Changes
    darec: Changes
    baseline: Changes
    search: Changes
    trials: int
    methods: Mapping[str, Changes] = field(default_factory=dict)
    search_of: Mapping[str, Changes] = field(default_factory=dict)
    figures: Changes = field(default_factory=dict)
    too_slow: tuple[str, ...] = ()
    sampler: str = "ax_bayes"
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    table_3: bool = True
    cpus: int = 1
    gpus: int = 0


_DEFAULT = "scientific"
_RECBOLE: Changes = {
    "weight_decay": 0.0,
    "warmup_fraction": 0.0,
    "schedule": "constant",
    "max_grad_norm": 1000,
    "batch_size": 50,
}
"""How RecBole trains sequence models, as far as it is not searched."""

_PRIOR: Changes = {
    "model.prior": {},
    "model.head_dropout": PRIOR_DROPOUT,
    "optimization.rates": dict(PRIOR_RATES),
}
"""What makes `darec` this project's, and a study's final model: `variants.with_prior`."""

SCALES = {
    "full": Scale(
        name="full",
        says="the paper's: OPT-125M, Table 3; for GPUs",
        common={"data.max_item_tokens": 30, "data.max_items": 50},
        darec={
            "model.backbone.name": "facebook/opt-125m",
            "model.adapters.bottleneck": 64,
            "model.collaborative": {"model": "ncf", "training": "joint"},
            "losses": {"contrastive_positions": 1, "contrastive_negatives": 5, "temperature": 1.0},
            "negatives": {"encoder": "google-bert/bert-base-uncased", "fraction": 0.005, "mf_dimension": 1000},
            "optimization": {"epochs": 40, "learning_rate": 5.0e-5, "warmup_fraction": 0.06},
        },
        baseline={"optimization": {**_RECBOLE, "epochs": 100, "patience": 10}},
        methods={"bert4rec": {"optimization": {"epochs": 200, "patience": 20}}, "darec": _PRIOR},
        search={},
        search_of={"baseline": {"data.users_fraction": 1.0}},
        trials=30,
        cpus=4,
        gpus=1,
    ),
    "small": Scale(
        name="small",
        says="a decoder trained on the catalogue's text; at most 90 minutes on two CPU cores for one dataset",
        common={"data.max_items": 20, "data.max_item_tokens": 12},
        darec={
            "model.backbone.builtin": {"layers": 3, "hidden": 64, "heads": 4, "vocabulary": 4096, "steps": 600},
            "model.adapters.bottleneck": 32,
            "model.collaborative": {"model": "ncf", "dimension": 32},
            "losses.contrastive_negatives": 2,
            "optimization": {"epochs": 5, "batch_size": 16, "learning_rate": 1.0e-3, "patience": 2},
        },
        baseline={"data.max_items": 50, "optimization": {**_RECBOLE, "epochs": 20, "patience": 3}},
        methods={
            **{name: {"optimization": {"epochs": 10, "patience": 2}} for name in ("fdsa", "unisrec")},
            "bert4rec": {"optimization": {"epochs": 60, "patience": 10}},
            "p5": {"optimization": {"epochs": 40, "patience": 10}},
            "recformer": {"baseline.options.tokens": 256, "optimization": {"epochs": 15, "patience": 3}},
            "darec": _PRIOR,
        },
        too_slow=("p5", "recformer"),
        search={"optimization.patience": None},
        search_of={
            "darec": {"data.users_fraction": 0.2, "optimization.epochs": 3},
            # A few epochs would choose what learns fast, not what ends well.
            "baseline": {"data.users_fraction": 1.0, "optimization.patience": 3},
            "bert4rec": {"optimization.epochs": 40, "optimization.patience": 10},
            **{name: {"data.users_fraction": 0.3, "optimization.epochs": 4} for name in ("fdsa", "unisrec")},
            "p5": {"data.users_fraction": 0.3, "optimization.epochs": 20, "optimization.patience": 10},
            "recformer": {"data.users_fraction": 0.3, "optimization.epochs": 6},
        },
        figures={"data.users_fraction": 0.3, "optimization.epochs": 4},
        trials=5,
        sampler_options={"start": 3},
    ),
    "tiny": Scale(
        name="tiny",
        says="seconds, to see that everything works; its figures say nothing",
        common={"data.max_items": 6, "data.max_item_tokens": 6, "optimization": {"epochs": 1, "batch_size": 32}},
        darec={
            "model.backbone.builtin": {"layers": 2, "hidden": 16, "heads": 2, "vocabulary": 300, "steps": 5},
            "model.adapters.bottleneck": 4,
            "model.collaborative.dimension": 4,
            "negatives.mf_dimension": 8,
        },
        baseline={},
        search={"data.users_fraction": 0.6},
        trials=2,
        sampler="random",
        seeds=(0, 1),
        table_3=False,
    ),
}


def table_3_of(dataset: str | None) -> tuple[Changes, Changes]:
    """Table 3 for a dataset of the paper, or Scientific's for any other: λ and batch size, and b for the search."""
    row = TABLE_3[dataset or _DEFAULT]
    losses = {f"losses.{name}": row[name] for name in ("align", "contrastive", "collaborative")}
    return {**losses, "optimization.batch_size": row["batch"]}, {"data.users_fraction": row["fraction"]}
