"""What is an old study worth to a new search, related or not?

python benchmarks/warm_start.py [--quick] [--record] [--problems smooth rough nk] [--seeds 10] [--trials 20] [--old 30]
                                [--noise 0.3] [--relations 0 0.7 0.95]

The old problem is r · new + √(1 - r²) · other, both standardised over random designs, so that r is the correlation of
the two over random designs. A search over the old one gives the old study; then `ax_bayes` searches the new one, cold
and after `learn_from`. Prints the mean score of the recommendation (0 = mean of random designs, 1 = optimum) after some
trials, with its standard error over seeds, the paired difference to the cold start after the last, and the trials until
the recommendation first scores what the cold start does on average after all of them (those that never do count as one
trial more). All searches of a seed see the same problem and noise.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from problems import PROBLEMS, Problem, draw
from recording import finish

from darec_search.samplers import create
from darec_search.samplers.base import Observation
from darec_search.space import Point

_OTHER = 1000
"""Added to the seed of a problem: another draw that has nothing to do with it."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.problems, options.seeds, options.trials, options.old = options.problems[:1], 1, 8, 10
    torch.set_num_threads(1)
    logging.getLogger("ax").setLevel(logging.WARNING)
    figures = {name: _compare(name, options) for name in options.problems}
    settings = {name: getattr(options, name) for name in ("trials", "old", "noise", "seeds")}
    finish({"benchmark": "warm_start", **settings, "scores": figures}, options.record)


def _compare(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of the cold start and of every relation on one problem."""
    curves: dict[str, list[list[float]]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        problem = draw(name, seed)
        curves.setdefault("cold", []).append(_search(problem, seed, options))
        for relation in options.relations:
            old = _old_study(_related(problem, draw(name, seed + _OTHER), relation), problem, seed, options)
            curves.setdefault(f"{relation:g}", []).append(_search(problem, seed, options, old))
    cold = np.array(curves["cold"])
    return {relation: _figures(name, relation, np.array(scores), cold) for relation, scores in curves.items()}


def _figures(name: str, relation: str, scores: NDArray[np.float64], cold: NDArray[np.float64]) -> dict[str, float]:
    """Figures of one relation from scores [seeds, trials]; prints them."""
    trials = scores.shape[1]
    reached = scores >= cold[:, -1].mean()
    until = np.where(reached.any(1), reached.argmax(1) + 1, trials + 1)
    figures = {f"after_{count}": float(scores[:, count - 1].mean()) for count in (5, 10, 20, 30) if count <= trials}
    figures |= {
        "stderr": _stderr(scores[:, -1]),
        "difference": float((scores - cold)[:, -1].mean()),
        "difference_stderr": _stderr((scores - cold)[:, -1]),
        "trials_to_cold": float(until.mean()),
    }
    figures = {key: round(value, 3) for key, value in figures.items()}
    print(f"{name:10}{relation:>6}  " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    return figures


def _stderr(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _related(new: Problem, other: Problem, relation: float) -> Callable[[Point], float]:
    """An objective of the designs with spread 1 whose correlation with `new` is `relation`."""

    def value(point: Point) -> float:
        own, foreign = ((problem.at(point) - problem.mean) / problem.spread for problem in (new, other))
        return float(relation * own + np.sqrt(1 - relation**2) * foreign)

    return value


def _old_study(
    value: Callable[[Point], float], problem: Problem, seed: int, options: argparse.Namespace
) -> list[Observation]:
    """What a search over the old problem has seen."""
    sampler = create("ax_bayes", problem.space, seed + _OTHER)
    noise = np.random.default_rng([seed, 78]).normal(size=options.old) * options.noise
    for extra in noise:
        point = sampler.ask()
        sampler.tell(point, value(point) + float(extra))
    return sampler.history.observations


def _search(
    problem: Problem, seed: int, options: argparse.Namespace, old: Sequence[Observation] | None = None
) -> list[float]:
    """Score of the recommendation after every trial."""
    sampler = create("ax_bayes", problem.space, seed)
    if old is not None:
        sampler.learn_from([old])
    sd = options.noise * problem.spread if problem.noise is None else problem.noise
    scores = []
    for extra in np.random.default_rng([seed, 77]).normal(size=options.trials) * sd:
        point = sampler.ask()
        sampler.tell(point, problem.at(point) + float(extra))
        scores.append(problem.score(sampler.best()))
    return scores


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one problem, one seed, 8 trials after 10")
    parser.add_argument("--record", action="store_true", help="append the result to results/warm_start.jsonl")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=["smooth", "rough", "nk"])
    parser.add_argument("--relations", nargs="+", type=float, default=[0.0, 0.7, 0.95], help="correlations old to new")
    parser.add_argument("--seeds", type=int, default=10, help="problems drawn")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first; tune on others than you report")
    parser.add_argument("--trials", type=int, default=20, help="trials of the new search")
    parser.add_argument("--old", type=int, default=30, help="trials of the old study")
    parser.add_argument("--noise", type=float, default=0.3, help="noise over the spread of random designs")
    return parser


if __name__ == "__main__":
    main()
