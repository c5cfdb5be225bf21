"""The models of Table 2: how each is trained, and which of its settings are searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.baselines import BASELINES, REFERENCES

Changes = Mapping[str, Any]
Levels = Mapping[str, tuple[float, ...]]

LLMREC: Changes = {
    "model.masks": ["causal"],
    "model.adapters.enabled": False,
    "model.collaborative.model": "none",
    "losses": {"align": 0, "contrastive": 0, "collaborative": 0},
}
"""The paper's LLMRec: no adapters, L_seq alone (Appendix F)."""
VARIATION_1: Changes = {
    "model.architecture": "serial",
    "model.masks": ["causal"],
    "model.collaborative.model": "none",
    "losses.collaborative": 0,
}
"""DARec_base (Section 3.3)."""
_OPTION_LEVELS: Levels = {"hidden": (64, 128), "layers": (1, 2), "dropout": (0.1, 0.3, 0.5)}
"""Searched of every trained baseline that has such an option."""
_LEARNING_RATES: Levels = {"optimization.learning_rate": (3e-4, 1e-3, 3e-3)}
_DAREC_LEVELS: Levels = {"losses.align": (0.1, 0.3, 1.0)}


@dataclass(frozen=True)
class Method:
    """A row of the results.

    Args:
        name: its key in `results.json`.
        title: what people read.
        kind: `reference` is counted, `baseline` trained in DARec's place, `darec` a DARec or a part of it.
        changes: the fields in which its trainings differ from the scale's.
        levels: field → levels that its search may choose.
        bits: whether its search chooses the adapters.
    """

    name: str
    title: str
    kind: Literal["reference", "baseline", "darec"]
    changes: Changes = field(default_factory=dict)
    levels: Levels = field(default_factory=dict)
    bits: bool = False


def _baseline(name: str) -> Method:
    options = BASELINES[name].Options.model_fields
    levels = {f"baseline.options.{option}": of for option, of in _OPTION_LEVELS.items() if option in options}
    return Method(name, _TITLES.get(name, name), "baseline", {"baseline.name": name}, {**_LEARNING_RATES, **levels})


_TITLES = {
    "popularity": "Popularity", "neighbours": "Neighbours", "itemknn": "ItemKNN", "gru4rec": "GRU4Rec",
    "sasrec": "SASRec", "bert4rec": "BERT4Rec", "fdsa": "FDSA", "unisrec": "UniSRec", "recformer": "RecFormer",
    "p5": "P5",
}  # fmt: skip


def all_methods() -> dict[str, Method]:
    """Every method by name: references, baselines, LLMRec, and DARec as the paper has it and as this project does.

    `darec` and `darec_paper` differ in what the scale says of them, and in that the loss weight λ1 of the first is
    searched, while the second keeps Table 3's.
    """
    found = [Method(name, _TITLES.get(name, name), "reference") for name in REFERENCES]
    found += [_baseline(name) for name in BASELINES]
    found += [
        Method("llmrec", "LLMRec", "darec", LLMREC, _LEARNING_RATES),
        Method("darec_paper", "DARec (paper)", "darec", {}, _LEARNING_RATES, bits=True),
        Method("darec", "DARec", "darec", {}, {**_LEARNING_RATES, **_DAREC_LEVELS}, bits=True),
    ]
    return {method.name: method for method in found}
