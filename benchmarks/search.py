"""How good is the design that a sampler recommends after n noisy evaluations?

python benchmarks/search.py [--quick] [--record] [--samplers ax_bayes random] [--problems smooth nk] [--seeds 10]
                            [--trials 30] [--parallel 1] [--noise 0.3]

Prints, per problem and sampler, the mean score of the recommendation (0 = mean of random designs, 1 = optimum) over
seeds, with its standard error, the paired difference to the first sampler with its own, and the share of searches whose
recommendation is within one standard deviation of the noise of the optimum. Every sampler sees the same problems and
the same noise stream. The measured landscapes (`landscape_*`) have the noise that was measured.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peers import COMPARED, searcher
from problems import PROBLEMS, Problem, draw
from recording import finish

from darec_search.space import Point

_LINE = (
    "{score:6.3f} ± {stderr:.3f}   {difference:+.3f} ± {difference_stderr:.3f}   found {found:.2f}   {seconds:.3f} s"
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.problems, options.seeds, options.trials = options.problems[:1], 1, 12
    torch.set_num_threads(1)
    logging.getLogger("ax").setLevel(logging.WARNING)
    figures = {name: _compare(name, options) for name in options.problems}
    line = {
        "benchmark": "search",
        **{name: getattr(options, name) for name in ("trials", "parallel", "noise", "seeds")},
        "scores": figures,
    }
    finish(line, options.record)


def _compare(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Score, its standard error and seconds per proposal of every sampler on one problem."""
    figures: dict[str, dict[str, float]] = {}
    first: NDArray[np.float64] | None = None
    for sampler in options.samplers:
        runs = [
            _run(sampler, draw(name, options.first_seed + seed), options.first_seed + seed, options)
            for seed in range(options.seeds)
        ]
        scores, found, seconds = np.array(runs).T
        first = scores if first is None else first
        figures[sampler] = {
            "score": round(float(scores.mean()), 4),
            "stderr": round(_stderr(scores), 4),
            "difference": round(float((scores - first).mean()), 4),
            "difference_stderr": round(_stderr(scores - first), 4),
            "found": round(float(found.mean()), 3),
            "seconds": round(float(seconds.mean()), 4),
        }
        print(f"{name:22}{sampler:14}{_LINE.format(**figures[sampler])}", flush=True)
    return figures


def _stderr(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _run(sampler_name: str, problem: Problem, seed: int, options: argparse.Namespace) -> tuple[float, bool, float]:
    """One search: score of the recommendation, whether the optimum is found, and mean seconds of an `ask`."""
    sampler = searcher(sampler_name, problem.space, seed)
    sd = options.noise * problem.spread if problem.noise is None else problem.noise
    noise = np.random.default_rng([seed, 77]).normal(size=options.trials) * sd
    running: list[Point] = []
    seconds = 0.0
    for number in range(options.trials):
        while len(running) < min(options.parallel, options.trials - number):
            started = time.process_time()
            running.append(sampler.ask(pending=running))
            seconds += time.process_time() - started
        point = running.pop(0)
        sampler.tell(point, problem.at(point) + noise[number])
    best = sampler.best()
    return problem.score(best), problem.at(best) >= problem.optimum - sd, seconds / options.trials


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one problem, one seed, 12 trials")
    parser.add_argument("--record", action="store_true", help="append the result to results/search.jsonl")
    parser.add_argument("--samplers", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=10, help="problems drawn, one search each")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first; tune on others than you report")
    parser.add_argument("--trials", type=int, default=30, help="evaluations of a search")
    parser.add_argument("--parallel", type=int, default=1, help="evaluations under way at a time")
    parser.add_argument("--noise", type=float, default=0.3, help="noise over the spread of random designs")
    return parser


if __name__ == "__main__":
    main()
