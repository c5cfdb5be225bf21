"""How long does the default sampler think, and does its memory grow?

python benchmarks/suggestion.py [--quick] [--record] [--results 30 100 300 1000] [--pending 0 63]

36 bits and three loss weights (4, 4, 5 levels), results drawn at random, one thread. Prints processor seconds of a
suggestion, the best of three, and how many MiB the process grew over twenty more of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import psutil
import torch
from recording import finish

from darec_search.samplers import create
from darec_search.samplers.base import Sampler
from darec_search.space import Point, SearchSpace

SPACE = SearchSpace(12, weights={"align": [0, 1, 2, 3], "contrastive": [0, 1, 2, 3], "collaborative": [0, 1, 2, 3, 4]})


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.results, options.pending = [30], [0]
    torch.set_num_threads(1)
    rows = []
    for results in options.results:
        sampler = _told(options.sampler, results)
        for pending in options.pending:
            rows.append({"results": results, "pending": pending, **_measure(sampler, pending)})
            print(rows[-1], flush=True)
    finish({"benchmark": "suggestion", "sampler": options.sampler, "rows": rows}, options.record)


def _told(name: str, results: int) -> Sampler:
    """A sampler that has seen noisy values of an additive objective."""
    sampler, rng = create(name, SPACE, 0), np.random.default_rng(results)
    effects = rng.normal(size=SPACE.bits)
    for _ in range(results):
        point = SPACE.sample(rng)
        sampler.tell(point, float(effects @ np.array(point.bits) + rng.normal()))
    return sampler


def _measure(sampler: Sampler, pending: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    running: list[Point] = [SPACE.sample(rng) for _ in range(pending)]
    sampler.ask(running)  # imports and caches
    before, times = _mib(), []
    for _ in range(3):
        started = time.process_time()
        sampler.ask(running)
        times.append(time.process_time() - started)
    for _ in range(20 if sum(times) < 3 else 3):
        sampler.ask(running)
    return {"seconds": round(min(times), 3), "grown_mib": round(_mib() - before, 1)}


def _mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 results, nothing pending")
    parser.add_argument("--record", action="store_true", help="append the result to results/suggestion.jsonl")
    parser.add_argument("--sampler", default="ax_bayes")
    parser.add_argument("--results", type=int, nargs="+", default=[30, 100, 300, 1000])
    parser.add_argument("--pending", type=int, nargs="+", default=[0, 63], help="designs under way")
    return parser


if __name__ == "__main__":
    main()
