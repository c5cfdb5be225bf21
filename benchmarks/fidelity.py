"""What do cheaper trials bring at equal GPU time: stopped early, short altogether, or as long as the sampler chooses?

python benchmarks/fidelity.py [--quick] [--record] [--landscapes FOLDER] [--curves synthetic:mrr users:0.9 …]
                              [--problems table smooth …] [--policies none curve epochs-1 fidelities …] [--seeds 10]
                              [--trials 30] [--runs FILE]

First prints, per landscape measured by `landscape.py` and per metric, how an epoch's figure (the best up to it) relates
to the last one: correlation of architectures without noise, rank correlation of a single run with its own end and with
another seed's end, noise over signal. Then lets `ax_bayes` search, one trial at a time, with a budget of `--trials`
whole trials counted in epochs, and prints the mean score of its recommendation (0 = mean of random designs,
1 = optimum), how much it gains on the first policy on the same problems, both with standard errors, and the trials that
the budget paid for.

Policies: `none` trains every trial to its end; `median`, `curve` and `foretold` stop it as `search.early_stopping`
does; `epochs-k` ends every trial after k epochs, as a smaller `search.epochs` would but for the learning rate's
schedule; `fidelities` offers all numbers of epochs to the sampler as `search.fidelities` does, `fidelities-k` only k
beside the whole.
Curves `users:ρ` are trainings on a quarter, on half and on all users instead of epochs, ρ the correlation of
neighbours without noise, whose variance goes with one over the users.
Problems: `table` is the landscape itself (complete ones only); the others are those of `problems`, whose value of a
design becomes a curve with the spread, correlations and noise of the landscape's.
"""

from __future__ import annotations

import argparse
import json
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
from darec_search.samplers.base import Sampler, Suggestion
from darec_search.space import Point, SearchSpace
from darec_search.stopping import EarlyStopping, Rule
from darec_search.study import Trial
from darec_search.trial import Fidelity, make_spec
from trainer.training.result import Row, RunResult

Array = NDArray[np.float64]
LANDSCAPES = Path(__file__).resolve().parent / "landscapes"
OBJECTIVE = "log_likelihood"
"""Name under which simulated curves go, whatever metric they imitate."""
_ROUNDING = 1e-9
Figures = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.curves, options.problems, options.policies = (
            options.curves[:1],
            ["smooth"],
            ["none", "curve", "fidelities"],
        )
        options.seeds, options.trials = 1, 12
    torch.set_num_threads(1)
    logging.getLogger("ax").setLevel(logging.WARNING)
    relations, scores = {}, {}
    for name in options.curves:
        landscape, _, metric = name.partition(":")
        trainings: Curves | Subsets
        if landscape == "users":
            trainings = Subsets(float(metric))
        else:
            file = options.landscapes / f"{landscape}.parquet"
            if not file.exists():
                print(f"{file}: is not there; measure it by landscape.py")
                continue
            trainings = Curves.read(file, metric)
            relations[name] = trainings.relations()
            for what, by_epoch in relations[name].items():
                print(f"{name:30}{what:34}" + " ".join(f"{figure:7.3f}" for figure in by_epoch))
        for problem in options.problems:
            if problem != "table" or trainings.is_complete:
                scores[f"{name} {problem}"] = _compare(name, trainings, problem, options)
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
    def costs(self) -> list[float]:
        """[E] of a trial of so many epochs, relative to a whole one."""
        epochs = self.values.shape[2]
        return [epoch / epochs for epoch in range(1, epochs + 1)]

    @property
    def level(self) -> Array:
        """[E] mean over architectures."""
        return np.asarray(self.values.mean((0, 1)))

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
                for k in range(len(self.costs))
            ]
        return {
            "signal's correlation with the end": (signal[-1] / spread / spread[-1]).tolist(),
            **ranks,
            "noise over signal": (np.sqrt(np.diag(noise)) / spread).tolist(),
        }


@dataclass(frozen=True)
class Subsets:
    """Trainings on a quarter, on half and on all of the users, as many epochs each.

    Args:
        correlation: of neighbouring fractions over architectures, without noise.
    """

    correlation: float
    is_complete: bool = False
    costs = (0.25, 0.5, 1.0)
    level = np.zeros(3)

    def covariances(self) -> tuple[Array, Array]:
        """[3, 3] covariance over fractions of architectures; and of the noise, 30 % of the spread with all users."""
        steps = np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
        return self.correlation**steps, np.diag(0.3**2 / np.array(self.costs))


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


def _imitation(name: str, trainings: Curves | Subsets, seed: int) -> Searched:
    """A problem of `problems` with curves like the landscape's.

    Of the curve of a design, what is correlated with the end follows the problem, and the rest another one of its kind.
    """
    problem, other = draw(name, seed), draw(name, seed + 1000)
    signal, noise = trainings.covariances()
    along = signal[-1] / np.sqrt(signal[-1, -1])
    across = np.sqrt(np.clip(np.diag(signal) - along**2, 0, None))
    root = np.linalg.cholesky(noise + 1e-12 * np.trace(noise) * np.eye(len(noise)))
    level = trainings.level
    so_far = np.maximum.accumulate if isinstance(trainings, Curves) else np.asarray

    def curve(point: Point, rng: np.random.Generator) -> Array:
        own = (problem.at(point) - problem.mean) / problem.spread
        rest = (other.at(point) - other.mean) / other.spread
        return np.asarray(so_far(level + along * own + across * rest + root @ rng.normal(size=len(level))))

    return Searched(problem.space, curve, problem.score)


def _compare(curves: str, trainings: Curves | Subsets, name: str, options: argparse.Namespace) -> dict[str, Figures]:
    figures: dict[str, Figures] = {}
    first: Array | None = None
    for policy in options.policies:
        if not _applies(policy, trainings):
            continue
        runs = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            key = {"curves": curves, "problem": name, "policy": policy, "seed": seed, "trials": options.trials}
            runs.append(_once(key, trainings, options.runs))
        scores, trials = np.array([run[0] for run in runs]), float(np.mean([run[1] for run in runs]))
        first = scores if first is None else first
        (score, stderr), (gain, gain_stderr) = _mean(scores), _mean(scores - first)
        text = f"{name:16}{policy:14}{score:7.3f} ± {stderr:.3f}   gain {gain:+.3f} ± {gain_stderr:.3f}"
        print(f"{text}   {trials:5.1f} trials", flush=True)
        row = {"score": score, "stderr": stderr, "gain": gain, "gain_stderr": gain_stderr, "trials": trials}
        figures[policy] = {what: round(figure, 4) for what, figure in row.items()}
    return figures


def _applies(policy: str, trainings: Curves | Subsets) -> bool:
    """Whether a policy is one for these trainings: fractions of users have no curve to stop by."""
    _, _, level = policy.partition("-")
    if level:
        return int(level) < len(trainings.costs)
    return isinstance(trainings, Curves) or policy in ("none", "fidelities")


def _once(key: dict[str, str | int], trainings: Curves | Subsets, file: Path | None) -> tuple[float, int]:
    """Score and trials of a search; one that the file of runs has is not repeated."""
    known = file.read_text(encoding="utf-8").splitlines() if file and file.exists() else []
    for run in map(json.loads, known):
        if run["key"] == key:
            return run["score"], run["used"]
    name, policy, seed = str(key["problem"]), str(key["policy"]), int(key["seed"])
    problem = _table(trainings) if name == "table" else _imitation(name, trainings, seed)
    search = _fidelities if policy.startswith("fidelities") else _run
    score, used = search(problem, policy, int(key["trials"]), trainings.costs, seed)
    if file:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"key": key, "score": score, "used": used}) + "\n")
    return score, used


def _mean(values: Array) -> tuple[float, float]:
    """Mean and its standard error."""
    stderr = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(stderr)


def _run(problem: Searched, policy: str, budget: int, costs: Sequence[float], seed: int) -> tuple[float, int]:
    """One search: score of the recommendation, and trials."""
    sampler = create("ax_bayes", problem.space, seed)
    stopping = EarlyStopping(policy if policy in get_args(Rule) else "none", OBJECTIVE)
    longest = int(policy[7:]) if policy.startswith("epochs-") else len(costs)
    number, used = 0, 0.0
    while used + costs[longest - 1] <= budget + _ROUNDING:
        point = sampler.ask()
        trial = _trial(number, point, len(costs))
        values = problem.curve(point, np.random.default_rng([seed, 77, number]))[:longest]
        rows: list[Row] = []
        stop = None
        while len(rows) < longest and stop is None:
            rows.append({"epoch": len(rows) + 1.0, OBJECTIVE: float(values[len(rows)])})
            stop = stopping.look(trial, rows[-1])
        used += costs[len(rows) - 1]
        number += 1
        if stop is not None and stop.forecast is not None:
            sampler.tell(point, stop.forecast.value, stop.forecast.stderr)
            continue
        result = RunResult(status="finished", metrics={"mrr": rows[-1][OBJECTIVE]}, curve=rows)
        stopping.ended(Trial(trial.spec, result, trial.folder))
        sampler.tell(point, rows[-1][OBJECTIVE])
    return problem.score(sampler.best()), number


def _fidelities(problem: Searched, policy: str, budget: int, costs: Sequence[float], seed: int) -> tuple[float, int]:
    """As `_run`, at fidelities that the sampler chooses; room for a whole trial is left before each, as in a study."""
    _, _, only = policy.partition("-")
    levels = [len(costs), *([int(only)] if only else range(len(costs) - 1, 0, -1))]
    sampler: Sampler = create("ax_bayes", problem.space, seed)
    sampler.use_fidelities([costs[level - 1] for level in levels[1:]])
    number, used = 0, 0.0
    while used + 1 <= budget + _ROUNDING:
        suggestion: Suggestion = sampler.suggest()
        level = levels[suggestion.fidelity]
        values = problem.curve(suggestion.point, np.random.default_rng([seed, 77, number]))
        sampler.tell(suggestion.point, float(values[level - 1]), fidelity=suggestion.fidelity)
        used, number = used + costs[level - 1], number + 1
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
    policies = ["none", "median", "curve", "foretold", "epochs-1", "epochs-2", "fidelities"]
    parser.add_argument("--policies", nargs="+", default=policies)
    parser.add_argument("--seeds", type=int, default=10, help="problems drawn, one search each")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=30, help="whole trials that the budget would pay for")
    parser.add_argument("--runs", type=Path, help="keep every search in this file, and repeat none that is there")
    return parser


if __name__ == "__main__":
    main()
