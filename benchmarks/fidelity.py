"""What do cheaper trials bring at equal GPU time: trials stopped early, or all of them short?

python benchmarks/fidelity.py [--quick] [--record] [--landscapes FOLDER] [--curves synthetic:mrr …]
                              [--problems table smooth …] [--policies none curve epochs-1 …] [--seeds 10] [--trials 30]

First prints, per landscape measured by `landscape.py` and per metric, how an epoch's figure (the best up to it) relates
to the last one: correlation of architectures without noise, rank correlation of a single run with its own end and with
another seed's end, noise over signal. Then lets `ax_bayes` search, one trial at a time, with a budget of `--trials`
whole trials counted in epochs, and prints the mean score of its recommendation (0 = mean of random designs,
1 = optimum), how much it gains on the first policy on the same problems, both with standard errors, and the trials that
the budget paid for.

Policies: `none` trains every trial to its end; `median`, `curve` and `foretold` stop it as `search.early_stopping`
does; `epochs-k` ends every trial after k epochs, as a smaller `search.epochs` would but for the learning rate's
schedule.
Problems: `table` is the landscape itself (complete ones only); the others are those of `problems`, whose value of a
design becomes a curve with the spread, correlations and noise of the landscape's.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from problems import PROBLEMS, draw
from recording import finish

from darec_search.samplers import create
from darec_search.space import Point, SearchSpace
from darec_search.stopping import EarlyStopping, Rule
from darec_search.study import Trial
from darec_search.trial import Fidelity, make_spec
from trainer.training.result import Row, RunResult

Array = NDArray[np.float64]
LANDSCAPES = Path(__file__).resolve().parent / "landscapes"
OBJECTIVE = "log_likelihood"
"""Name under which simulated curves go, whatever metric they imitate."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.curves, options.problems, options.policies = options.curves[:1], ["smooth"], ["none", "curve"]
        options.seeds, options.trials = 1, 12
    torch.set_num_threads(1)
    logging.getLogger("ax").setLevel(logging.WARNING)
    relations, scores = {}, {}
    for name in options.curves:
        landscape, _, metric = name.partition(":")
        file = options.landscapes / f"{landscape}.parquet"
        if not file.exists():
            print(f"{file}: is not there; measure it by landscape.py")
            continue
        curves = Curves.read(file, metric)
        relations[name] = curves.relations()
        for what, by_epoch in relations[name].items():
            print(f"{name:30}{what:34}" + " ".join(f"{figure:7.3f}" for figure in by_epoch))
        for problem in options.problems:
            if problem != "table" or curves.is_complete:
                scores[f"{name} {problem}"] = _compare(curves, problem, options)
    line = {"benchmark": "fidelity", "trials": options.trials, "seeds": options.seeds}
    finish({**line, "relations": relations, "scores": scores}, options.record)


@dataclass(frozen=True)
class Curves:
    """A landscape's curves.

    Args:
        bits: [n, d] architectures with two seeds.
        values: [n, 2, E] best figure up to each epoch.
    """

    bits: Array
    values: Array

    @classmethod
    def read(cls, file: Path, metric: str) -> Curves:
        """Those of a file of `landscape.py`."""
        table = pd.read_parquet(file).pivot_table(index=["bits", "seed"], columns="epoch", values=metric).dropna()
        whole = table.groupby("bits").filter(lambda seeds: len(seeds) >= 2).groupby("bits").head(2).sort_index()
        values = np.maximum.accumulate(whole.to_numpy(), axis=1).reshape(-1, 2, whole.shape[1])
        names = whole.index.get_level_values("bits")[::2]
        return cls(np.array([[int(bit) for bit in name] for name in names], dtype=np.float64), values)

    @property
    def is_complete(self) -> bool:
        """Whether every architecture of its space is there."""
        return len(self.bits) == 2 ** self.bits.shape[1]

    @property
    def epochs(self) -> int:
        """E."""
        return self.values.shape[2]

    def covariances(self) -> tuple[Array, Array]:
        """[E, E] covariance over epochs of architectures, from products of different seeds, and of the noise."""
        one, two = (self.values[:, seed] - self.values[:, seed].mean(0) for seed in (0, 1))
        signal = (one.T @ two + two.T @ one) / (2 * len(one))
        difference = (one - two) / np.sqrt(2)
        return signal, difference.T @ difference / len(one)

    def relations(self) -> dict[str, list[float]]:
        """Per epoch, how the figure so far relates to the last one."""
        signal, noise = self.covariances()
        spread = np.sqrt(np.diag(signal))
        ranks = {}
        for what, other in (("rank correlation with its own end", 0), ("… with another seed's end", 1)):
            ranks[what] = [
                float(np.mean([_rank_correlation(self.values[:, s, k], self.values[:, s ^ other, -1]) for s in (0, 1)]))
                for k in range(self.epochs)
            ]
        return {
            "signal's correlation with the end": (signal[-1] / spread / spread[-1]).tolist(),
            **ranks,
            "noise over signal": (np.sqrt(np.diag(noise)) / spread).tolist(),
        }


def _rank_correlation(one: Array, two: Array) -> float:
    return float(pd.Series(one).corr(pd.Series(two), method="spearman"))


@dataclass(frozen=True)
class Searched:
    """A problem with learning curves."""

    space: SearchSpace
    curve: Callable[[Point, np.random.Generator], Array]
    """[E] best figure up to each epoch, of a fresh run."""
    score: Callable[[Point], float]


def _table(curves: Curves) -> Searched:
    """The landscape as it was measured; a run is one of the two seeds."""
    place = {tuple(int(bit) for bit in row): index for index, row in enumerate(curves.bits)}
    ends = curves.values[:, :, -1].mean(1)

    def score(point: Point) -> float:
        return float((ends[place[point.bits]] - ends.mean()) / (ends.max() - ends.mean()))

    def curve(point: Point, rng: np.random.Generator) -> Array:
        return curves.values[place[point.bits], rng.integers(2)]

    return Searched(SearchSpace(curves.bits.shape[1] // 3), curve, score)


def _imitation(name: str, curves: Curves, seed: int) -> Searched:
    """A problem of `problems` with curves like the landscape's.

    Of the curve of a design, what is correlated with the end follows the problem, and the rest another one of its kind.
    """
    problem, other = draw(name, seed), draw(name, seed + 1000)
    signal, noise = curves.covariances()
    along = signal[-1] / np.sqrt(signal[-1, -1])
    across = np.sqrt(np.clip(np.diag(signal) - along**2, 0, None))
    root = np.linalg.cholesky(noise + 1e-12 * np.trace(noise) * np.eye(len(noise)))
    level = curves.values.mean((0, 1))

    def curve(point: Point, rng: np.random.Generator) -> Array:
        own = (problem.at(point) - problem.mean) / problem.spread
        rest = (other.at(point) - other.mean) / other.spread
        return np.maximum.accumulate(level + along * own + across * rest + root @ rng.normal(size=len(level)))

    return Searched(problem.space, curve, problem.score)


def _compare(curves: Curves, name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    first: Array | None = None
    wanted = [p for p in options.policies if not p.startswith("epochs-") or int(p[7:]) < curves.epochs]
    for policy in wanted:
        runs = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            problem = _table(curves) if name == "table" else _imitation(name, curves, seed)
            runs.append(_run(problem, policy, options.trials * curves.epochs, curves.epochs, seed))
        scores, trials = np.array([run[0] for run in runs]), float(np.mean([run[1] for run in runs]))
        first = scores if first is None else first
        (score, stderr), (gain, gain_stderr) = _mean(scores), _mean(scores - first)
        text = f"{name:16}{policy:10}{score:7.3f} ± {stderr:.3f}   gain {gain:+.3f} ± {gain_stderr:.3f}"
        print(f"{text}   {trials:5.1f} trials", flush=True)
        row = {"score": score, "stderr": stderr, "gain": gain, "gain_stderr": gain_stderr, "trials": trials}
        figures[policy] = {what: round(figure, 4) for what, figure in row.items()}
    return figures


def _mean(values: Array) -> tuple[float, float]:
    """Mean and its standard error."""
    stderr = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(stderr)


def _run(problem: Searched, policy: str, budget: int, epochs: int, seed: int) -> tuple[float, int]:
    """One search: score of the recommendation, and trials."""
    sampler = create("ax_bayes", problem.space, seed)
    stopping = EarlyStopping(policy if policy in get_args(Rule) else "none", OBJECTIVE)
    longest = int(policy[7:]) if policy.startswith("epochs-") else epochs
    number, used = 0, 0
    while used + longest <= budget:
        point = sampler.ask()
        trial = _trial(number, point, epochs)
        values = problem.curve(point, np.random.default_rng([seed, 77, number]))[:longest]
        rows: list[Row] = []
        stop = None
        while len(rows) < longest and stop is None:
            rows.append({"epoch": len(rows) + 1.0, OBJECTIVE: float(values[len(rows)])})
            stop = stopping.look(trial, rows[-1])
        used += len(rows)
        number += 1
        if stop is not None and stop.forecast is not None:
            sampler.tell(point, stop.forecast.value, stop.forecast.stderr)
            continue
        result = RunResult(status="finished", metrics={"mrr": rows[-1][OBJECTIVE]}, curve=rows)
        stopping.ended(Trial(trial.spec, result, trial.folder))
        sampler.tell(point, rows[-1][OBJECTIVE])
    return problem.score(sampler.best()), number


def _trial(number: int, point: Point, epochs: int) -> Trial:
    spec = make_spec("benchmark", number, "joint", point, number, Fidelity(users_fraction=1.0, epochs=epochs))
    return Trial(spec, None, Path("nowhere"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one problem, one seed, 12 trials")
    parser.add_argument("--record", action="store_true", help="append the result to results/fidelity.jsonl")
    parser.add_argument("--landscapes", type=Path, default=LANDSCAPES, help="folder of the measured landscapes")
    curves = [f"{name}:{metric}" for name in ("synthetic", "scientific") for metric in ("log_likelihood", "mrr")]
    parser.add_argument("--curves", nargs="+", default=curves, help="landscape:metric that the curves are like")
    problems = ["table", "smooth", "rough", "nk"]
    parser.add_argument("--problems", nargs="+", choices=["table", *PROBLEMS], default=problems)
    policies = ["none", "median", "curve", "foretold", "epochs-1", "epochs-2"]
    parser.add_argument("--policies", nargs="+", default=policies)
    parser.add_argument("--seeds", type=int, default=10, help="problems drawn, one search each")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=30, help="whole trials that the budget would pay for")
    return parser


if __name__ == "__main__":
    main()
