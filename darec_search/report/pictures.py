"""All pictures of a report, drawn with matplotlib's objects (no pyplot, no global figure)."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darec_search.report.drawing import PANEL, PARALLEL, SERIAL, STYLE, cell_box, layer_grid, save
from darec_search.report.facts import Facts
from darec_search.report.mattered import effects_picture, weights_picture
from darec_search.report.progress import cost_picture, retests_picture, search_picture
from darec_search.report.timeline import timeline_picture
from trainer.architecture import Architecture


def pictures(facts: Facts) -> dict[str, Figure]:
    """All pictures that the study has data for, by file name."""
    with mpl.rc_context(STYLE):
        drawn = {
            "best_so_far": search_picture(facts),
            "architecture": _architecture(facts.leader) if facts.leader else None,
            "retests": retests_picture(facts),
            "effects": effects_picture(facts),
            "weights": weights_picture(facts),
            "cost": cost_picture(facts),
            "timeline": timeline_picture(facts),
        }
    return {name: figure for name, figure in drawn.items() if figure}


def architecture_picture(architecture: Architecture, path: Path) -> None:
    """Draw the adapters of every DALayer by slot, and save them in the format of the path's suffix."""
    with mpl.rc_context(STYLE):
        save(_architecture(architecture), path)


def _architecture(architecture: Architecture) -> Figure:
    """Layers from top to bottom, slots from left to right."""
    layers = architecture.layers
    figure, axes = layer_grid(layers)
    for layer in range(layers):
        for column, kind in enumerate(architecture.layer(layer).values()):
            _cell(axes, column, layer, kind)
    return figure


def _cell(axes: Axes, column: int, layer: int, kind: str) -> None:
    axes.add_patch(cell_box(column, layer, facecolor=PARALLEL if kind == "parallel" else SERIAL, edgecolor="none"))
    axes.text(column, layer, kind, ha="center", va="center_baseline", color=PANEL, fontsize=8.5, fontweight="bold")
