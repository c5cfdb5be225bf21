"""What can be reproduced: each table and figure with its trainings, and what the paper says of its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from darec_search.reproduce.methods import VARIATION_1, Changes

_POWERS = tuple(10.0**exponent for exponent in range(-7, 0))
DAREC = "darec_paper"
"""Of which the figures show variants."""


@dataclass(frozen=True)
class Variant:
    """A bar, a point of a line or a cell.

    Args:
        label: what it is called, also in its folder.
        changes: what differs from DARec as its search found it.
        series: of which line it is a point.
        x: where it stands.
        y: its row in a grid.
        method: another method that stands in this place, as its own search found it.
    """

    label: str
    changes: Changes = field(default_factory=dict)
    series: str = ""
    x: float | None = None
    y: float | None = None
    method: str = DAREC


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Args:
        name: on the command line.
        title: as the paper calls it.
        shown: its form.
        claim: what the paper says of the outcome, in our words.
        variants: what a figure compares; empty for Table 2, which compares all methods.
        x_label: of a line's or grid's axis.
        y_label: of a grid's rows.
        log_x: whether the axis is one of powers.
    """

    name: str
    title: str
    shown: Literal["comparison", "bars", "lines", "grid", "times"]
    claim: str
    variants: tuple[Variant, ...] = ()
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False


def _weights() -> tuple[Variant, ...]:
    ones = {"losses": {"align": 1.0, "contrastive": 1.0, "collaborative": 1.0}}
    found = []
    for number, weight in enumerate(("align", "contrastive", "collaborative"), 1):
        for value in (*_POWERS, 1.0):
            label = "all-1" if value == 1 else f"lambda{number}-{value:.0e}"
            found.append(Variant(label, {**ones, f"losses.{weight}": value}, f"λ{number}", value))
    return tuple(found)


def _one(label: str, field_name: str, values: tuple[float, ...], **changes: Any) -> tuple[Variant, ...]:
    return tuple(Variant(f"{label}{value}", {**changes, field_name: value}, "", value) for value in values)


def _samples() -> tuple[Variant, ...]:
    return tuple(
        Variant(
            f"ns{positions}-ncl{negatives}",
            {"losses.contrastive_positions": positions, "losses.contrastive_negatives": negatives},
            x=negatives,
            y=positions,
        )
        for positions in (1, 2, 3)
        for negatives in (1, 5, 10)
    )


_ALL = (
    Experiment(
        "table2", "Table 2: comparison of all methods", "comparison",
        "DARec is best on all five datasets by all three metrics, at p < 0.01 against the best baseline.",
    ),
    Experiment(
        "fig5", "Fig. 5: DARec and its variations", "bars",
        "DARec is best; Variation 2 exceeds Variation 1 on Pantry, and falls behind it on Arts in NDCG@10.",
        (
            Variant("Variation-1", VARIATION_1),
            Variant("Variation-2", {"model.architecture": "serial"}),
            Variant("DARec"),
        ),
    ),
    Experiment(
        "fig6", "Fig. 6: effect of context masking", "bars",
        "DARec with a context mask exceeds DARec with two causal masks.",
        (Variant("two-causal", {"model.masks": ["causal", "causal"]}), Variant("DARec")),
    ),
    Experiment(
        "fig7", "Fig. 7: task weights, the others at 1", "lines",
        "Performance peaks around λ1 = 1e-1, λ2 = 1e-6 and λ3 = 1e-2.",
        _weights(), x_label="λ", log_x=True,
    ),
    Experiment(
        "fig8", "Fig. 8: bottleneck size", "lines", "Performance is best at 64.",
        _one("bottleneck", "model.adapters.bottleneck", (16, 32, 64, 128, 256)), x_label="bottleneck", log_x=True,
    ),
    Experiment(
        "fig9", "Fig. 9: contrastive samples", "grid", "More of either generally helps.",
        _samples(), x_label="n_cl", y_label="n_s",
    ),
    Experiment(
        "fig10", "Fig. 10: replacement frequency", "lines", "The more layers are DALayers (small r), the better.",
        _one("r", "model.adapters.replacement_frequency", (1, 2, 3, 4, 6), **{"model.architecture": "serial"}),
        x_label="r",
    ),
    Experiment(
        "fig13", "Fig. 13: CF models", "bars", "NCF is generally better than MF.",
        (Variant("MF", {"model.collaborative.model": "mf"}), Variant("NCF", {"model.collaborative.model": "ncf"})),
    ),
    Experiment(
        "fig14", "Fig. 14: frozen or jointly trained NCF", "bars", "Joint training is better.",
        (
            Variant("frozen", {"model.collaborative.training": "frozen"}),
            Variant("joint", {"model.collaborative.training": "joint"}),
        ),
    ),
    Experiment(
        "table4", "Table 4: running time", "times",
        "LLMRec takes the least time, DARec less than RecFormer.",
        (Variant("RecFormer", method="recformer"), Variant("LLMRec", method="llmrec"), Variant("DARec")),
    ),
)  # fmt: skip
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
