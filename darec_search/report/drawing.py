"""How pictures look, and how they get into files and into the page.

Every picture is drawn in the colours of `COLOURS`; the page replaces them by CSS variables, so that one drawing serves
light and dark. Shades are the same colours, partly transparent. Pictures are narrow enough to be read on a phone.
"""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from trainer.architecture import SLOTS

COLOURS = {
    "ink": "#1d2733",
    "muted": "#65717e",
    "line": "#dfe4ea",
    "panel": "#fffffe",
    "serial": "#2f6db5",
    "parallel": "#e08a1e",
    "accent": "#0f8b76",
    "bad": "#c8442f",
    "soft": "#aab5c0",
}
INK, MUTED, LINE, PANEL = (COLOURS[name] for name in ("ink", "muted", "line", "panel"))
SERIAL, PARALLEL, ACCENT, BAD, SOFT = (COLOURS[name] for name in ("serial", "parallel", "accent", "bad", "soft"))
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "darec-search",
    "text.parse_math": False,
}
WIDTH = 4.4
"""Inches of a picture that fits a phone."""


def save(figure: Figure, path: Path) -> None:
    """Save a picture on a light ground."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=160, facecolor=PANEL, metadata=metadata)


def inline_svg(figure: Figure, label: str) -> str:
    """A picture as an SVG element whose colours are CSS variables and whose text is text.

    Args:
        figure: one of `pictures`.
        label: what a screen reader says; already escaped.
    """
    buffer = StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'<svg[^>]*?viewBox="([^"]+)"[^>]*>', f'<svg viewBox="\\1" role="img" aria-label="{label}">', svg, count=1
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def layer_grid(layers: int) -> tuple[Figure, Axes]:
    """A grid for the adapters: layers from the input (L0) downwards, slots from left to right, unit cells."""
    cell = min(0.52, max(0.2, 4.4 / layers))
    figure, axes = new_figure(0.75 + cell * layers)
    axes.set(xlim=(-0.5, len(SLOTS) - 0.5), ylim=(layers - 0.5, -0.5))
    axes.set_xticks(range(len(SLOTS)), [f"{slot}\nadapter" for slot in SLOTS])
    axes.xaxis.tick_top()
    axes.set_yticks(range(layers), [f"L{layer}" for layer in range(layers)])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def cell_box(column: int, layer: int, **look: Any) -> FancyBboxPatch:
    """The box of a cell of `layer_grid`."""
    return FancyBboxPatch(
        (column - 0.44, layer - 0.36), 0.88, 0.72, boxstyle="round,pad=0,rounding_size=0.12", mutation_aspect=2.2,
        **look,
    )  # fmt: skip
