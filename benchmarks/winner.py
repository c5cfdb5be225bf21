"""Does a promotion pick the right design, and is what it says of it true?

python benchmarks/winner.py [--quick] [--studies 40] [--samplers random:6 optuna_tpe:3 ax_bayes:1] [--first-seed 1000]
                            [--out runs/winner] [--picture FILE] [--record]

Whole studies on simulated objectives whose true values are known: a search of 30 trials by the product's own
controller, then the product's own promotion (three candidates, two fixed arms, ten re-tests), all over a simulated
runner. `--studies` of each scenario; samplers take turns as their shares say. The studies' folders are kept, so a
stopped benchmark goes on, and a changed rule is judged by the same searches.

Regret is the true value of the best design that search or promotion tried, minus that of the pick, in standard
deviations of random designs. `best observed` picks the highest score of the search and believes it; `mean of re-tests`
picks the highest plain mean of the same re-tests and believes it. A stated interval has to hold the true value in 90 %.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from problems import Problem, draw
from recording import finish
from rich.console import Console
from rich.progress import track
from rich.table import Table

from darec_search.arms import search_values
from darec_search.config import StudyConfig
from darec_search.controller import search
from darec_search.promotion import Candidate, Promotion, retest
from darec_search.runners.simulated import Outcome, SimulatedRunner
from darec_search.space import Point
from darec_search.study import Study
from darec_search.trial import TrialSpec
from trainer.training.result import RunResult

SCENARIOS: tuple[tuple[str, float | None], ...] = (
    ("smooth", 0.3),
    ("smooth", 1.2),
    ("landscape_scientific", None),
    ("landscape_synthetic", None),
    ("landscape_scientific", 1.2),
)
"""Problem, and noise of a training over the spread of random designs; None is the noise that was measured."""
SAMPLERS = ["random:6", "optuna_tpe:3", "ax_bayes:1"]
TRIALS = 30


@dataclass(frozen=True)
class Simulated:
    """One study.

    Args:
        name: of the problem.
        noise: as in `SCENARIOS`.
        sampler: of the search.
        seed: draws problem and noise, and seeds the search.
    """

    name: str
    noise: float | None
    sampler: str
    seed: int

    @property
    def scenario(self) -> str:
        """Problem and noise, for people."""
        return f"{self.name}, noise {'as measured' if self.noise is None else f'{self.noise:.0%}'}"

    @cached_property
    def problem(self) -> Problem:
        return _drawn(self.name, self.seed)

    @cached_property
    def sd(self) -> float:
        """Standard deviation of a training."""
        own = self.problem.noise if self.noise is None else self.noise * self.problem.spread
        assert own is not None
        return own

    def run(self, out: Path) -> Verdict:
        """Search and promote, or go on with what is in `out`."""
        noise = "own" if self.noise is None else f"{self.noise:g}"
        folder = out / f"{self.name}-{noise}-{self.sampler}-{self.seed}"
        study = Study.open(_config(folder, self.sampler, self.seed), "0" * 64, self.problem.space.layers)
        with SimulatedRunner(study, self._outcome) as runner:
            search(study, runner)
            promotion = retest(study, runner, lambda event: None)
        return Verdict.of(self, study, promotion)

    def _outcome(self, spec: TrialSpec) -> Outcome:
        noise = np.random.default_rng([self.seed, spec.seed, *spec.bits]).normal(0, self.sd)
        return 1.0, RunResult(status="finished", metrics={"mrr": self.problem.at(Point(spec.bits)) + noise})


@dataclass(frozen=True)
class Verdict:
    """One study's end; values in standard deviations of random designs, as differences to the best that was tried.

    Args:
        study: which one.
        honest: stated and true value of the promotion's pick.
        interval: stated 90 % interval.
        observed: stated and true value of the best observed.
        plain: stated and true value of the highest plain mean of the re-tests.
        spent: re-tests.
        from_search: the pick is no fixed arm.
    """

    study: Simulated
    honest: tuple[float, float]
    interval: tuple[float, float]
    observed: tuple[float, float]
    plain: tuple[float, float]
    spent: int
    from_search: bool

    @classmethod
    def of(cls, simulated: Simulated, study: Study, promotion: Promotion) -> Verdict:
        scores = search_values(study, "mrr")
        designs = {*scores, *(Point(candidate.bits) for candidate in promotion.candidates)}
        true = {point: simulated.problem.at(point) for point in designs}
        best, spread = max(true.values()), simulated.problem.spread
        lucky = max(scores, key=scores.__getitem__)
        plain = max(promotion.candidates, key=_mean)

        def scaled(stated: float, point: Point) -> tuple[float, float]:
            return (stated - best) / spread, (true[point] - best) / spread

        value = promotion.value
        assert value is not None
        return cls(
            simulated,
            honest=scaled(value.mean, Point(promotion.best.bits)),
            interval=((value.low - best) / spread, (value.high - best) / spread),
            observed=scaled(scores[lucky], lucky),
            plain=scaled(_mean(plain), Point(plain.bits)),
            spent=promotion.spent or 0,
            from_search=promotion.winner.startswith("best-"),
        )

    @property
    def covered(self) -> bool:
        """Whether the interval holds the true value."""
        return self.interval[0] <= self.honest[1] <= self.interval[1]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    logging.getLogger("ax").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if options.quick:
        options.studies, options.samplers = 8, ["random:1"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) if options.quick else options.out
        found = [one.run(out) for one in track(_studies(options), description="studies")]
    _print_table(found)
    if options.picture:
        _picture(found, options.picture)
    line = {"benchmark": "winner", "quick": options.quick, "samplers": options.samplers, **figures(found)}
    finish({**line, "scenarios": {name: figures(part) for name, part in _by_scenario(found).items()}}, options.record)


def figures(found: Sequence[Verdict]) -> dict[str, float]:
    """What many studies say together."""
    honest, observed, plain = (np.array([getattr(v, name) for v in found]) for name in ("honest", "observed", "plain"))
    regret, of_observed = -honest[:, 1].mean(), -observed[:, 1].mean()
    widths = np.array([v.interval[1] - v.interval[0] for v in found])
    rows = {
        "coverage_90": np.mean([v.covered for v in found]),
        "regret_ratio": regret / of_observed,
        "regret": regret,
        "regret_best_observed": of_observed,
        "regret_plain_mean": -plain[:, 1].mean(),
        "bias": np.mean(honest[:, 0] - honest[:, 1]),
        "bias_best_observed": np.mean(observed[:, 0] - observed[:, 1]),
        "bias_plain_mean": np.mean(plain[:, 0] - plain[:, 1]),
        "half_width": widths.mean() / 2,
        "retests": np.mean([v.spent for v in found]),
        "from_search": np.mean([v.from_search for v in found]),
    }
    return {"studies": len(found), **{name: round(float(value), 4) for name, value in rows.items()}}


def _mean(candidate: Candidate) -> float:
    return -np.inf if candidate.mean is None else candidate.mean


def _by_scenario(found: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    names = dict.fromkeys(verdict.study.scenario for verdict in found)
    return {name: [verdict for verdict in found if verdict.study.scenario == name] for name in names}


def _studies(options: argparse.Namespace) -> list[Simulated]:
    """Seed by seed, so that a benchmark that was stopped has something of every scenario."""
    shares = [(name, int(share)) for name, _, share in (text.partition(":") for text in options.samplers)]
    turns = [name for name, share in shares for _ in range(share)]
    seeds = range(options.studies)
    return [
        Simulated(name, noise, turns[seed % len(turns)], options.first_seed + seed)
        for seed in seeds
        for name, noise in SCENARIOS
    ]


def _config(folder: Path, sampler: str, seed: int) -> StudyConfig:
    """The model is DARec_base's, which leaves that arm out: the simulated objective knows architectures alone."""
    document = {
        "name": "simulated",
        "output": str(folder),
        "seed": seed,
        "data": {"path": "none"},
        "model": {"masks": ["causal"], "collaborative": {"model": "none"}},
        "search": {"strategy": "joint", "sampler": sampler, "trials": TRIALS},
    }
    return StudyConfig.model_validate(document)


@lru_cache(maxsize=8)
def _drawn(name: str, seed: int) -> Problem:
    return draw(name, seed)


def _print_table(found: Sequence[Verdict]) -> None:
    names = {"studies": "studies", "coverage_90": "coverage", "regret": "regret", "regret_plain_mean": "… plain mean"}
    names |= {"regret_best_observed": "… best observed", "bias": "overstated by", "bias_plain_mean": "… plain mean"}
    names |= {"bias_best_observed": "… best observed", "half_width": "half width", "retests": "re-tests"}
    table = Table("scenario", *names.values())
    for scenario, part in {**_by_scenario(found), "all": list(found)}.items():
        shown = figures(part)
        table.add_row(scenario, *(f"{shown[name]:g}" for name in names))
    Console(width=190).print(table)


def _picture(found: Sequence[Verdict], file: Path) -> None:
    """Stated against true values: what the search claimed of its best score, and what the promotion says."""
    mpl.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharex=True, sharey=True, layout="constrained")
    panels = {"Best observed: its score in the search": "observed", "Promotion: estimate and 90 % interval": "honest"}
    for axis, (title, name) in zip(axes, panels.items(), strict=True):
        pairs = np.array([getattr(verdict, name) for verdict in found])
        hit = np.array([name == "observed" or verdict.covered for verdict in found])
        if name == "honest":
            low, high = np.array([verdict.interval for verdict in found]).T
            colours = np.where(hit, "#9db4c0", "#c1554d")
            axis.vlines(pairs[:, 1], low, high, color=colours, linewidth=0.8, zorder=1)
        axis.scatter(pairs[:, 1], pairs[:, 0], s=9, color=np.where(hit, "#25525f", "#c1554d"), zorder=2)
        ends = (float(pairs.min()) - 0.3, 0.3)
        axis.plot(ends, ends, color="#888888", linewidth=0.8)
        axis.set(title=title, xlabel="true value (0: the best that was tried)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("stated value, in spreads of random designs")
    figure.savefig(file, dpi=110)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 studies of random search, kept nowhere")
    parser.add_argument("--studies", type=int, default=40, help="studies of each scenario")
    parser.add_argument(
        "--samplers", nargs="+", default=["random:6", "optuna_tpe:3", "ax_bayes:1"], metavar="NAME:SHARE"
    )
    parser.add_argument(
        "--first-seed", type=int, default=1000, help="seed of the first; tune on others than you report"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/winner"), help="folder of the studies")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--record", action="store_true", help="append the figures to results/winner.jsonl")
    return parser


if __name__ == "__main__":
    main()
