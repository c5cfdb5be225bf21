"""Are the workers kept busy, and what does a trial cost beyond its training?

python benchmarks/scheduling.py [--quick] [--record] [--workers 8 64 512] [--rounds 2] [--minutes 5]
                                [--sampler ax_bayes] [--trials 12]

Utilisation: the product's own controller and sampler, 36 bits and three loss weights, over simulated workers whose
trials take a log-normal time with a median of `--minutes`. Trials take no wall time, but everything that this process
does takes as long on the simulated clock as it took of the processor: a worker that waits for the sampler is idle.
Counted from the first start until the last proposal was made; `--rounds` trials a worker. Beside it how many proposals
repeat a design, and by how many MiB the most memory held in the last quarter of them exceeds that in the one before.

Overhead: a tiny study on a real Ray of its own. Seconds a trial on a warm lane between the end of the one before and
its own first optimiser step, and the same for the first trial of a lane, whose processes start.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from problems import draw
from recording import finish

from darec_search import runners
from darec_search.config import StudyConfig
from darec_search.controller import search
from darec_search.runners.base import Event
from darec_search.runners.simulated import Outcome, SimulatedRunner
from darec_search.study import Study, Trial
from darec_search.trial import TrialSpec
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.training.result import RunResult

SPREAD = 0.4
"""Standard deviation of the logarithm of a trial's duration."""
FINGERPRINT = "simulated"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.workers, options.trials = [8, 64], 6
    torch.set_num_threads(1)
    logging.getLogger("ax").setLevel(logging.WARNING)
    rows = [_utilisation(workers, options) for workers in options.workers]
    overhead = _overhead(options.trials)
    line = {
        "benchmark": "scheduling",
        "sampler": options.sampler,
        "minutes": options.minutes,
        "utilisation": {str(row["workers"]): row["utilisation"] for row in rows},
        "rows": rows,
        "overhead_s": overhead["warm_s"],
        "cold_s": overhead["cold_s"],
    }
    finish(line, options.record)


class ClockedRunner(SimulatedRunner):
    """Simulated trials whose clock goes on while this process computes."""

    in_process = False

    def __init__(self, study: Study, outcome: Callable[[TrialSpec], Outcome], slots: int) -> None:
        super().__init__(study, outcome, slots)
        self._time, self._read = 0.0, time.process_time()
        self.last_submission = 0.0
        self.mib: list[float] = []
        """Memory of this process at every submission."""

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial; it starts when a slot is free, but not in the past."""
        self.last_submission = self.clock()
        self.mib.append(psutil.Process().memory_info().rss / 2**20)
        super().submit(spec)

    def wait(self, timeout: float | None = None) -> list[Event]:
        """The next event; with a timeout only one that has happened by now."""
        due = min((trial.next_at for trial in self._running), default=math.inf)
        if timeout is not None and due > self.clock():
            return []
        self._time = max(self.clock(), due)
        return super().wait(timeout)

    def clock(self) -> float:
        """Time of the last event that was waited for, and the processor time since."""
        read = time.process_time()
        self._time, self._read = self._time + read - self._read, read
        return self._time


def _utilisation(workers: int, options: argparse.Namespace) -> dict[str, float]:
    """Share of the workers' time that trials took, until the last proposal."""
    problem, rng = draw("smooth_weights", 0), np.random.default_rng(workers)
    noise = 0.3 * problem.spread

    def outcome(spec: TrialSpec) -> Outcome:
        value = problem.at(spec.point) + rng.normal(0, noise)
        return 60 * options.minutes * rng.lognormal(0, SPREAD), RunResult(status="finished", metrics={"mrr": value})

    trials = workers * options.rounds
    with tempfile.TemporaryDirectory() as folder:
        study = Study.open(_simulated(Path(folder), trials, problem.space.weights, options.sampler), FINGERPRINT, 12)
        started = time.process_time()
        with ClockedRunner(study, outcome, workers) as runner:
            search(study, runner)
        seconds = time.process_time() - started
        busy = [_within(trial, runner.last_submission) for trial in study.trials()]
        designs = {trial.spec.point for trial in study.trials()}
    quarter = trials // 4
    row = {
        "workers": workers,
        "trials": trials,
        "utilisation": round(sum(busy) / (workers * runner.last_submission), 3),
        "controller_s_per_trial": round(seconds / trials, 3),
        "repeated": trials - len(designs),
        "grown_mib": round(max(runner.mib[-quarter:]) - max(runner.mib[-2 * quarter : -quarter]), 1),
    }
    print(row, flush=True)
    return row


def _simulated(folder: Path, trials: int, weights: Mapping[str, Sequence[float]], sampler: str) -> StudyConfig:
    search_section = {"sampler": sampler, "strategy": "joint", "trials": trials, "weights": dict(weights)}
    document = {"name": "scheduling", "output": str(folder / "study"), "data": {"path": str(folder)}}
    return StudyConfig.model_validate({**document, "search": search_section})


def _within(trial: Trial, end: float) -> float:
    """Seconds before `end` that a trial ran."""
    assert trial.result is not None
    cost = trial.result.cost
    return max(0.0, min(cost.ended_at, end) - cost.started_at)


def _overhead(trials: int) -> dict[str, float]:
    """Seconds between the end of one trial and the first optimiser step of the next, on real lanes."""
    with tempfile.TemporaryDirectory() as folder:
        config = _tiny(Path(folder), trials)
        prepare("synthetic", None, Path(config.data.path), users=150, items=80)
        study = Study.open(config, Dataset.open(Path(config.data.path)).fingerprint, 2)
        began = time.time()
        with runners.create(study) as runner:
            search(study, runner)
        lanes = defaultdict(list)
        for trial in study.trials():
            assert trial.result is not None
            lanes[str(trial.result.worker)].append(trial.result.cost)
    cold, warm = [], []
    for costs in lanes.values():
        costs.sort(key=lambda cost: cost.started_at)
        cold.append(costs[0].first_step_at - began)
        warm += [after.first_step_at - before.ended_at for before, after in itertools.pairwise(costs)]
    row = {"warm_s": round(statistics.median(warm), 3), "cold_s": round(statistics.median(cold), 1)}
    print({**row, "worst_warm_s": round(max(warm), 3), "lanes": len(lanes), "trials": trials}, flush=True)
    return row


def _tiny(folder: Path, trials: int) -> StudyConfig:
    """A study whose trials train for a moment."""
    builtin = {"layers": 2, "hidden": 16, "heads": 2, "vocabulary": 400, "steps": 20}
    document = {
        "name": "overhead",
        "output": str(folder / "study"),
        "cache": str(folder / "cache"),
        "data": {"path": str(folder / "data"), "max_items": 10},
        "model": {
            "backbone": {"builtin": builtin},
            "adapters": {"bottleneck": 8},
            "collaborative": {"dimension": 8},
        },
        "negatives": {"mf_dimension": 8},
        "optimization": {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3},
        "search": {"sampler": "random", "trials": trials, "strategy": "joint"},
        "tracking": {"enabled": False},
    }
    return StudyConfig.model_validate(document)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 and 64 workers, six real trials")
    parser.add_argument("--record", action="store_true", help="append the result to results/scheduling.jsonl")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512], help="simulated workers")
    parser.add_argument("--rounds", type=int, default=2, help="trials a worker")
    parser.add_argument("--minutes", type=float, default=5.0, help="median duration of a simulated trial")
    parser.add_argument("--sampler", default="ax_bayes")
    parser.add_argument("--trials", type=int, default=12, help="real trials")
    return parser


if __name__ == "__main__":
    main()
