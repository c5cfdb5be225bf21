"""How the default sampler thinks, in pictures for docs/search.md.

python benchmarks/search_pictures.py [--quick] [--seed 0] [--trials 30] [--noise 0.3] [--out docs/images]

Searches some problems of `problems` once each and draws `search-thinks.png`: what the surrogate weighs, which main
effects it believes in beside the true ones, and how the recommendation came about.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from problems import Problem, draw

from darec_search.samplers import create
from darec_search.samplers.base import Observation, Recommendation
from darec_search.samplers.kernels import StructuredKernels
from darec_search.samplers.proposer import Proposer

Array = NDArray[np.float64]
WEIGHED = ("smooth", "rough", "few", "landscape_scientific")
SHOWN = "smooth"
LONGER = "few"
"""Searched twice as long too: which bits matter shows late."""
BLUE, GREY, RED = "#2563eb", "#9ca3af", "#dc2626"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.trials, options.out = 12, Path("runs/pictures")
    torch.set_num_threads(1)
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    searches = {name: _search(draw(name, options.seed), options, options.trials) for name in WEIGHED}
    longer, _ = _search(draw(LONGER, options.seed), options, 2 * options.trials)
    weights = {name: _weights(draw(name, options.seed), found) for name, (found, _) in searches.items()}
    weights[f"{LONGER}, {len(longer)}"] = _weights(draw(LONGER, options.seed), longer)
    problem, (told, advised) = draw(SHOWN, options.seed), searches[SHOWN]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained", width_ratios=(1.3, 0.8, 0.8, 1.4))
    _draw_weights(axes[0], weights)
    _draw_effects(axes[1], _effects(problem, problem.value), "true main effects")
    model = Proposer(problem.space).model(told)
    _draw_effects(axes[2], _effects(problem, lambda x: model.mean(torch.from_numpy(x)).numpy()), "what it believes")
    _draw_run(axes[3], problem, told, advised)
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "search-thinks.png", dpi=110)
    print(options.out / "search-thinks.png")


def _search(
    problem: Problem, options: argparse.Namespace, trials: int
) -> tuple[list[Observation], list[Recommendation]]:
    """All results of a search, and what was recommended after each."""
    sampler, told, advised = create("ax_bayes", problem.space, options.seed), [], []
    sd = problem.noise if problem.noise is not None else options.noise * problem.spread
    noise = np.random.default_rng([options.seed, 77]).normal(0, sd, trials)
    for number in range(trials):
        point = sampler.ask()
        told.append(Observation(point, problem.at(point) + float(noise[number])))
        sampler.tell(point, told[-1].value)
        advised += sampler.recommend()
    return told, advised


def _weights(problem: Problem, told: Sequence[Observation]) -> dict[str, float]:
    """Share of the signal's variance that the mixture gives each component."""
    model = Proposer(problem.space).model(told)
    names, shares = StructuredKernels(problem.space).names, (model.weights @ model.weightings).tolist()
    return {**dict(zip(names, shares, strict=False)), "tables": sum(shares[len(names) :])}


def _effects(problem: Problem, value: Callable[[Array], Array]) -> Array:
    """[L, 3] mean change, in spreads, by making an adapter parallel, over designs drawn uniformly."""
    drawn = np.random.default_rng(0).integers(0, 2, (256, problem.space.bits)).astype(np.float64)
    effects = []
    for bit in range(problem.space.bits):
        serial, parallel = drawn.copy(), drawn.copy()
        serial[:, bit], parallel[:, bit] = 0, 1
        effects.append((value(parallel) - value(serial)).mean() / problem.spread)
    return np.array(effects).reshape(problem.space.layers, problem.space.slots)


def _draw_weights(axis: Axes, weights: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(weights.values())))
    shares = np.array([[found.get(name, 0.0) for name in names] for found in weights.values()])
    axis.imshow(shares.T, cmap="Blues", vmin=0, vmax=max(0.5, shares.max()), aspect="auto")
    for (column, row), share in np.ndenumerate(shares):
        axis.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.3 else "black")
    axis.set_xticks(range(len(weights)), [name.removeprefix("landscape_") for name in weights])
    axis.set_yticks(range(len(names)), names)
    axis.set_title("weight of each kernel")


def _draw_effects(axis: Axes, effects: Array, title: str) -> None:
    axis.imshow(effects, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axis.set_xticks(range(3), ("causal", "context", "rec"))
    axis.set_yticks(range(len(effects)), [str(layer + 1) for layer in range(len(effects))])
    axis.set(title=title, ylabel="layer")


def _draw_run(axis: Axes, problem: Problem, told: Sequence[Observation], advised: Sequence[Recommendation]) -> None:
    """Scores: 0 is the mean of random designs, 1 the optimum."""
    scale = problem.optimum - problem.mean
    at = np.arange(1, len(told) + 1)
    axis.plot(at, [(o.value - problem.mean) / scale for o in told], ".", color=GREY, label="result")
    bounds = np.array([(row.low, row.high) for row in advised], dtype=np.float64)
    low, high = (bounds.T - problem.mean) / scale
    axis.fill_between(at, low, high, color=BLUE, alpha=0.15, lw=0, label="believed, 90 %")
    axis.plot(at, [(row.mean - problem.mean) / scale for row in advised], color=BLUE, label="believed")
    axis.plot(at, [problem.score(row.point) for row in advised], color=RED, lw=1.2, label="true")
    axis.axhline(1.0, color="black", lw=0.8)
    axis.set(xlabel="results", ylabel="score", title=f"what is recommended ({SHOWN})", ylim=(-0.5, 1.1))
    axis.legend(loc="lower right", fontsize=8, frameon=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="12 trials, nothing is drawn into docs/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--noise", type=float, default=0.3, help="over the spread of random designs")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    return parser


if __name__ == "__main__":
    main()
