"""The comparison of samplers as docs/search.md shows it: tables and a picture, made from results/search.json.

python benchmarks/search_page.py [--quick]

Writes what stands between the marks of docs/search.md, and docs/images/search-compared.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from recording import RESULTS
from search_report import MEASURED, OURS, Setting

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- compared: begin, made from benchmarks/results/search.json -->", "<!-- compared: end -->"
SYNTHETIC = ("smooth", "smooth_weights", "rough", "nk", "contamination", "ackley", "labs", "few")
_Rows = Sequence[Mapping[str, Any]]


def tables(document: Mapping[str, Any]) -> str:
    """Goals, and a table a setting: the measured landscapes first, then by noise, width and number of results."""
    rows = document["runs"]
    settings = {setting(row): None for row in rows}
    order = sorted(settings, key=lambda s: (s.noise is not None, s.noise or 0.0, s.width, s.n))
    parts = ["\n".join(goals(document["goals"]))]
    for one in order:
        here = [row for row in rows if setting(row) == one]
        found = document["found"] if one == Setting(None, 1, 30) else {}
        parts.append("\n".join(table(one, here, found)))
    return "\n\n".join(parts)


def setting(row: Mapping[str, Any]) -> Setting:
    """That of a row of the report."""
    return Setting(row["noise"], row["width"], row["n"])


def goals(judged: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """A row a goal."""
    says = {True: "reached", False: "**not reached**", None: "not measured"}
    yield "| goal, at 30 results one at a time | | found |"
    yield "|---|---|---|"
    for goal in judged:
        yield f"| {goal['text']} | {says[goal['reached']]} | {goal['found']} |"


def table(of: Setting, rows: _Rows, found: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterable[str]:
    """Samplers by problems, ours first and the others by their mean; the smallest regret of a column in bold.

    Args:
        of: what is shown.
        rows: its rows of the report.
        found: by landscape and sampler the shares that found the best, shown beside the landscapes.
    """
    problems = [name for name in (*MEASURED, *SYNTHETIC) if any(row["problem"] == name for row in rows)]
    cells = {(row["sampler"], row["problem"]): row["regret"] for row in rows}
    usual = max(cell[2] for cell in cells.values())
    means = {name: _mean(cells, name, problems) for name in dict.fromkeys(row["sampler"] for row in rows)}
    best = {problem: min(cell[0] for key, cell in cells.items() if key[1] == problem) for problem in problems}
    shares = [problem for problem in problems if problem in found]
    yield f"**{str(of)[0].upper()}{str(of)[1:]}**, {usual} seeds where no other number stands in brackets"
    yield ""
    titles = [*(name.removeprefix("landscape_") for name in problems), *(() if found else ("mean",))]
    titles += [f"{name.removeprefix('landscape_')}: not told from the best" for name in shares]
    yield f"| | {' | '.join(titles)} |"
    yield f"|---|{'---|' * len(titles)}"
    for name in sorted(means, key=lambda name: (name != OURS, means[name] is None, means[name] or 0.0)):
        row = [_cell(cells.get((name, problem)), best[problem], usual) for problem in problems]
        if not found:
            row.append("" if means[name] is None else f"{means[name]:.2f}")
        row += [f"{found[problem][name][2]:.2f}" if name in found[problem] else "" for problem in shares]
        yield f"| {name} | {' | '.join(row)} |"


def _mean(cells: Mapping[tuple[str, str], Sequence[float]], sampler: str, problems: Sequence[str]) -> float | None:
    """Over all problems; None if one is missing."""
    own = [cells.get((sampler, problem)) for problem in problems]
    return sum(cell[0] for cell in own if cell) / len(own) if all(own) else None


def _cell(cell: Sequence[float] | None, best: float, usual: int) -> str:
    if cell is None:
        return ""
    mean, stderr, seeds = cell
    text = f"{mean:.2f}" if stderr is None else f"{mean:.2f} ± {stderr:.2f}"
    text = f"**{text}**" if f"{mean:.2f}" == f"{best:.2f}" else text
    return text if seeds == usual else f"{text} ({seeds})"


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Regret by problem at both noises, and over the number of results and of evaluations at a time."""
    rows = document["runs"]
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(13, 7.5), constrained_layout=True)
    others = sorted({row["sampler"] for row in rows} - {OURS})
    colours = {OURS: "black", **{name: mpl.colormaps["tab20"](2 * i % 20 + i // 10) for i, name in enumerate(others)}}
    for axis, noise in zip(axes[0], (0.3, 1.2), strict=True):
        _draw_problems(axis, [row for row in rows if setting(row) == Setting(noise, 1, 30)], colours)
        axis.set_title(f"30 results, noise {noise:.0%} of the spread", loc="left")
    small = [row for row in rows if row["noise"] == 0.3]
    _draw_over(axes[1, 0], [row for row in small if row["width"] == 1], "n", colours)
    axes[1, 0].set_title("one at a time, noise 30 %, by the number of results", loc="left")
    _draw_over(axes[1, 1], [row for row in small if row["n"] == 30], "width", colours)
    axes[1, 1].set_title("30 results, noise 30 %, by how many are under way at a time", loc="left")
    marks = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours.values()]
    figure.legend(marks, list(colours), loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_problems(axis: Axes, rows: _Rows, colours: Mapping[str, Any]) -> None:
    problems = [name for name in SYNTHETIC if any(row["problem"] == name for row in rows)]
    for place, (name, colour) in enumerate(colours.items()):
        own = {row["problem"]: row["regret"] for row in rows if row["sampler"] == name}
        shown = [problem for problem in problems if problem in own]
        axis.errorbar(
            [problems.index(problem) + (place / len(colours) - 0.5) * 0.6 for problem in shown],
            [own[problem][0] for problem in shown],
            [own[problem][1] or 0.0 for problem in shown],
            fmt="o", markersize=7 if name == OURS else 3.5, color=colour, elinewidth=1,
        )  # fmt: skip
    axis.set_xticks(range(len(problems)), [name.replace("_", "\n") for name in problems], fontsize=7.5)
    axis.set_ylabel("regret of the recommendation")
    axis.set_ylim(0, 1.1)


def _draw_over(axis: Axes, rows: _Rows, what: str, colours: Mapping[str, Any]) -> None:
    """Mean regret over the problems, of samplers that have all of them at several values of `what`."""
    values = sorted({row[what] for row in rows})
    for name, colour in colours.items():
        points = {}
        for value in values:
            own = [row["regret"][0] for row in rows if row["sampler"] == name and row[what] == value]
            if len(own) == len(SYNTHETIC):
                points[value] = sum(own) / len(own)
        if len(points) > 1:
            axis.plot(list(points), list(points.values()), "o-", color=colour, linewidth=2.5 if name == OURS else 1.2)
    axis.set_xscale("log")
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()
    axis.set_ylabel("mean regret over the eight problems")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="print, and write nothing")
    options = parser.parse_args(arguments)
    document = json.loads((RESULTS / "search.json").read_text())
    made = tables(document)
    if options.quick:
        print(made)
        return
    page = DOCS / "search.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    draw(document, DOCS / "images" / "search-compared.png")
    print(json.dumps({"benchmark": "search_page", "tables": made.count("**, "), "file": str(page)}))


if __name__ == "__main__":
    main()
