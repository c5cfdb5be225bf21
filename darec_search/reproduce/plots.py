"""Figures 5 to 10, 13 and 14 in the paper's form: NDCG@10 and Recall@10 side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darec_search.report.drawing import ACCENT, INK, PANEL, PARALLEL, SERIAL, SOFT, STYLE, WIDTH, save
from darec_search.reproduce.experiments import Experiment
from darec_search.reproduce.results import Entry

_SHOWN = {"ndcg@10": "NDCG@10", "recall@10": "Recall@10"}
_COLOURS = (SERIAL, PARALLEL, ACCENT, SOFT, INK)


def draw(experiment: Experiment, datasets: Mapping[str, Sequence[Entry]], path: Path) -> None:
    """Save a figure's picture: a row of two panels for each dataset."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH, 2.6 * len(datasets)))
        rows = figure.subplots(len(datasets), len(_SHOWN), squeeze=False)
        for axes_row, (dataset, entries) in zip(rows, datasets.items(), strict=True):
            for axes, metric in zip(axes_row, _SHOWN, strict=True):
                {"bars": _bars, "lines": _lines, "grid": _grid}[experiment.shown](axes, experiment, entries, metric)
                axes.set_title(f"{dataset}, {_SHOWN[metric]}", fontsize=10, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


def _bars(axes: Axes, experiment: Experiment, entries: Sequence[Entry], metric: str) -> None:
    places = np.arange(len(entries))
    heights = [entry[metric] for entry in entries]
    errors = [entry["sd"][metric] or 0.0 for entry in entries]
    axes.bar(places, heights, 0.6, yerr=errors, color=_COLOURS[: len(entries)], ecolor=INK, capsize=3)
    axes.set_xticks(places, [entry["label"] for entry in entries])
    axes.grid(axis="x", visible=False)
    low = min(height - error for height, error in zip(heights, errors, strict=True))
    # As in the paper the axis does not begin at 0: differences are what a figure is for.
    axes.set_ylim(bottom=max(0.0, low - 0.5 * (max(heights) - low) - 1e-4))


def _lines(axes: Axes, experiment: Experiment, entries: Sequence[Entry], metric: str) -> None:
    for colour, series in zip(_COLOURS, dict.fromkeys(entry["series"] for entry in entries), strict=False):
        points = [entry for entry in entries if entry["series"] == series]
        x, y = [entry["x"] for entry in points], [entry[metric] for entry in points]
        errors = [entry["sd"][metric] or 0.0 for entry in points]
        axes.errorbar(x, y, errors, color=colour, marker="o", markersize=4, capsize=2, label=series)
    if experiment.log_x:
        axes.set_xscale("log")
    ticks = sorted({entry["x"] for entry in entries})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(experiment.x_label)
    if any(entry["series"] for entry in entries):
        axes.legend(frameon=False, fontsize=8)


def _grid(axes: Axes, experiment: Experiment, entries: Sequence[Entry], metric: str) -> None:
    columns, rows = (sorted({entry[name] for entry in entries}) for name in ("x", "y"))
    cells = np.full((len(rows), len(columns)), np.nan)
    for entry in entries:
        cells[rows.index(entry["y"]), columns.index(entry["x"])] = entry[metric]
    # Darker is lower, as in the paper.
    axes.imshow(cells, cmap="cividis", aspect="auto", origin="lower")
    middle = np.nanmean(cells)
    for (row, column), value in np.ndenumerate(cells):
        colour = PANEL if value < middle else INK
        axes.text(column, row, f"{value:.4f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    axes.set(xlabel=experiment.x_label, ylabel=experiment.y_label)
    axes.grid(False)
