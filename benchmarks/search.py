"""How good is the design that a sampler recommends after n noisy evaluations? Ours, and other libraries' own.

python benchmarks/search.py [--quick] [--samplers ax_bayes random] [--problems smooth nk] [--seeds 10] [--trials 30]
                            [--widths 1 4 16] [--noise 0.3 1.2] [--label NAME] [--runs FILE]
python benchmarks/search.py --report [--record] [--label NAME] [--runs FILE]

Results are appended to the file of runs, and what is there is not run again: a comparison can be stopped, resumed and
extended. A search of 100 trials tells of 30 and 60 as well. `--report` prints regrets (0 = optimum, 1 = mean of random
designs), paired differences to `ax_bayes` and each goal; `--record` writes them to results/search.json.

Durations of evaluations are drawn from a log-normal distribution, so that with several under way a later one may end
first. Under one seed all samplers see the same problem, noise and durations.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from peers import PEERS
from problems import PROBLEMS, Problem, draw
from recording import RESULTS
from search_report import report

import darec_search.samplers
from darec_search.samplers import SAMPLERS, create
from darec_search.space import Point

COMPARED = [*(name for name in SAMPLERS if name != "grid"), *PEERS]
"""The grid refuses spaces of this size."""
LIBRARIES = {
    "random": "numpy",
    **dict.fromkeys(("optuna_tpe", "optuna_gp", "optuna_cmaes", "native_tpe", "native_gp", "native_cmaes"), "optuna"),
    "ax_default": "ax-platform",
    **dict.fromkeys(("botorch_ei", "botorch_nei"), "botorch"),
    "smac": "smac",
    "nevergrad": "nevergrad",
}
"""Whose version tells what was run; that of the other samplers is their label, or a hash of their sources."""
READ = (30, 60, 100)
"""Numbers of results at which the recommendation is read, beside the last."""
SPREAD_OF_DURATIONS = 0.4
"""Standard deviation of a duration's logarithm."""


@dataclass(frozen=True)
class Search:
    """What is run.

    Args:
        problem: a key of `PROBLEMS`.
        sampler: one of `COMPARED`.
        version: of the sampler.
        seed: draws problem, noise and durations, and seeds the sampler.
        width: evaluations under way at a time.
        noise: standard deviation of an evaluation over the spread of random designs; None is the problem's own.
    """

    problem: str
    sampler: str
    version: str
    seed: int
    width: int
    noise: float | None


@dataclass(frozen=True)
class Run(Search):
    """One line of the file of runs: a search after n results.

    Args:
        n: results.
        regret: of the recommendation, noiseless; 0 is the optimum, 1 the mean of random designs.
        seconds: of processor time for a suggestion and taking in a result, mean so far.
    """

    n: int
    regret: float
    seconds: float


class Searcher(Protocol):
    """What is compared."""

    def ask(self, pending: Sequence[Point] = ()) -> Point: ...

    def tell(self, point: Point, value: float) -> None: ...

    def best(self) -> Point: ...


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("ax").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if options.quick:
        options.samplers, options.problems = ["ax_bayes", "optuna_tpe", "native_tpe", "random"], ["smooth", "nk"]
        options.seeds, options.trials, options.widths, options.noise = 2, 12, [1, 4], [0.3]
        with tempfile.TemporaryDirectory() as folder:
            options.runs = Path(folder) / "runs.jsonl"
            _run_missing(options)
            report(read(options.runs), None)
        return
    if not options.report:
        _run_missing(options)
        return
    runs = [run for run in read(options.runs) if options.label in (None, run.version) or run.sampler in LIBRARIES]
    report(runs, RESULTS / "search.json" if options.record else None)


def read(path: Path) -> list[Run]:
    """All runs of a file, in order."""
    return [Run(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _run_missing(options: argparse.Namespace) -> None:
    known = {(_search(run), run.n) for run in read(options.runs)}
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    for search in _searches(options):
        if (search, options.trials) in known:
            continue
        for run in run_search(search, options.trials):
            if (search, run.n) not in known:
                with options.runs.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
                print(*(f"{value!s:<15}" for value in asdict(run).values()), flush=True)


def _searches(options: argparse.Namespace) -> Iterator[Search]:
    """All that is asked for, seed by seed; a measured landscape's noise is its own, once."""
    versions = {name: _version(name, options.label) for name in options.samplers}
    for name in (name for name, version in versions.items() if version is None):
        print(f"{name}: skipped, {LIBRARIES[name]} is not installed")
    for width in options.widths:
        for noise in options.noise:
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                for problem in options.problems:
                    own = problem.startswith("landscape_")
                    if own and noise != options.noise[0]:
                        continue
                    for sampler, version in versions.items():
                        if version is not None:
                            yield Search(problem, sampler, version, seed, width, None if own else noise)


def run_search(search: Search, trials: int) -> Iterator[Run]:
    """Search, and judge what is recommended along the way."""
    problem = _drawn(search.problem, search.seed)
    sampler = _searcher(search, problem, trials)
    sd = search.noise * problem.spread if search.noise is not None else problem.noise
    assert sd is not None
    total = trials + search.width  # the last results come while others are under way, as in a longer search
    noise = np.random.default_rng([search.seed, 77]).normal(0, sd, total)
    durations = np.random.default_rng([search.seed, 78]).lognormal(0.0, SPREAD_OF_DURATIONS, total)
    running: list[tuple[float, int, Point]] = []  # when it ends, number, design
    asked, now, seconds = 0, 0.0, 0.0
    for told in range(1, trials + 1):
        started = time.process_time()
        while len(running) < search.width:
            pending = [point for _, _, point in sorted(running, key=lambda entry: entry[1])]
            heapq.heappush(running, (now + durations[asked], asked, sampler.ask(pending)))
            asked += 1
        now, number, point = heapq.heappop(running)
        sampler.tell(point, problem.at(point) + noise[number])
        seconds += time.process_time() - started
        if told in READ or told == trials:
            regret = 1 - problem.score(sampler.best())
            yield Run(**asdict(search), n=told, regret=round(regret, 4), seconds=round(seconds / asked, 5))


def _searcher(search: Search, problem: Problem, trials: int) -> Searcher:
    if search.sampler in PEERS:
        return PEERS[search.sampler](problem.space, search.seed, trials, search.width)
    return create(search.sampler, problem.space, search.seed)


def _search(run: Run) -> Search:
    return Search(**{name: getattr(run, name) for name in Search.__dataclass_fields__})


@lru_cache(maxsize=64)
def _drawn(problem: str, seed: int) -> Problem:
    return draw(problem, seed)


def _version(sampler: str, label: str | None) -> str | None:
    """None if the library is not installed."""
    if sampler in LIBRARIES:
        try:
            return installed(LIBRARIES[sampler])
        except PackageNotFoundError:
            return None
    sources = sorted(Path(darec_search.samplers.__path__[0]).glob("*.py"))
    return label or hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:10]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few short searches, kept nowhere")
    parser.add_argument("--report", action="store_true", help="run nothing, report what was run")
    parser.add_argument("--record", action="store_true", help="write the report to results/search.json too")
    parser.add_argument("--runs", type=Path, default=RESULTS / "search_runs.jsonl", help="file of runs")
    parser.add_argument("--label", help="version of ax_bayes and prob_reparam, instead of a hash of their sources")
    parser.add_argument("--samplers", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=10, help="problems drawn, one search each")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first; tune on others than you report")
    parser.add_argument("--trials", type=int, default=30, help="results of a search")
    parser.add_argument("--widths", type=int, nargs="+", default=[1], help="evaluations under way at a time")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.3], help="over the spread of random designs")
    return parser


if __name__ == "__main__":
    main()
