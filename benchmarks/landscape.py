"""What does validation MRR look like over architectures, and how far do seeds blur it?

python benchmarks/landscape.py NAME [--quick] [--architectures 256] [--seeds 2] [--out runs/landscapes]
                               [--set SECTION.FIELD=VALUE ...] [--suffix TEXT]

NAME is a study file under `landscapes/`. Trains so many architectures with so many seeds through a study's own
machinery, and writes `landscapes/NAME.parquet`: one row an architecture, seed and epoch. Resumable: started again it
repeats no finished training. `landscape_report.py` says what the file shows.

In spaces of more than 1,024 architectures half are drawn uniformly; the other half with a share of parallel adapters
that is itself uniform, since uniform draws hardly ever come near all serial or all parallel.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from darec_search import planning, runners
from darec_search.config import StudyConfig, load_study
from darec_search.controller import search_fidelity
from darec_search.runners.base import DoneEvent
from darec_search.space import Point, SearchSpace
from darec_search.study import Study, Trial
from darec_search.trial import TrialSpec, make_spec

LANDSCAPES = Path(__file__).resolve().parent / "landscapes"
_SMALL = 1024
METRICS = ("mrr", "recall@10", "ndcg@10", "log_likelihood", "loss/total")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    file = LANDSCAPES / f"{options.name}{options.suffix}.parquet"
    if options.quick:
        options.name, options.architectures, options.seeds = "synthetic", 2, 1
        options.set += ["optimization.epochs=1", "model.backbone.builtin.steps=20"]
        options.suffix, file = "-quick", options.out / "quick.parquet"
    study = _open(options)
    specs = _specs(study, options)
    trials = _train(study, specs)
    table = _table(trials)
    words = {"command": _command(options), "fingerprint": study.fingerprint, "config": study.config.model_dump_json()}
    pq.write_table(table.replace_schema_metadata(words), file, compression="zstd")
    finished = sum(trial.status == "finished" for trial in trials)
    line = {"benchmark": "landscape", "name": options.name, "trials": len(trials), "finished": finished}
    print(json.dumps({**line, "file": str(file)}))


def _open(options: argparse.Namespace) -> Study:
    overrides = [f"output={options.out / (options.name + options.suffix)}", *options.set]
    config: StudyConfig = load_study(LANDSCAPES / f"{options.name}.yaml", overrides)
    dataset = planning.open_dataset(config)
    plan = planning.check(config, dataset)
    return Study.open(config, dataset.fingerprint, plan.layers)


def _specs(study: Study, options: argparse.Namespace) -> list[TrialSpec]:
    """Architecture by architecture, so that a part of the table has all seeds of what it has."""
    points = architectures(study.space, options.architectures)
    pairs = [(point, seed) for point in points for seed in range(options.seeds)]
    fidelity = search_fidelity(study)
    return [
        make_spec(study.id, number, "architecture", point, seed, fidelity) for number, (point, seed) in enumerate(pairs)
    ]


def architectures(space: SearchSpace, count: int) -> list[Point]:
    """`count` of all in a random order where the space is small; else all serial, all parallel, and others."""
    rng = np.random.default_rng(0)
    if space.size <= _SMALL:
        points = list(space.points())
        return [points[i] for i in rng.permutation(len(points))[:count]]
    found = {(0,) * space.bits: None, (1,) * space.bits: None}
    while len(found) < count:
        share = 0.5 if len(found) % 2 else rng.random()
        found[tuple(int(bit) for bit in rng.random(space.bits) < share)] = None
    return [Point(bits) for bits in found][:count]


def _train(study: Study, specs: Sequence[TrialSpec]) -> list[Trial]:
    waiting = [spec for spec in specs if study.request(spec).result is None]
    with runners.create(study) as runner:
        for spec in waiting:
            runner.submit(spec)
        for _ in track(waiting, description=f"{study.config.name}: {len(waiting)} of {len(specs)} trainings"):
            while not any(isinstance(event, DoneEvent) for event in runner.wait()):
                pass
    return [study.trial(spec.id) for spec in specs]


def _table(trials: Sequence[Trial]) -> pa.Table:
    rows = [
        {
            "bits": "".join(map(str, trial.spec.bits)),
            "seed": trial.spec.seed,
            "epoch": int(row["epoch"]),
            "seconds": row["seconds"],
            **{name: row.get(name) for name in METRICS},
        }
        for trial in trials
        if trial.result is not None and trial.status == "finished"
        for row in trial.result.curve
    ]
    return pa.Table.from_pylist(rows)


def _command(options: argparse.Namespace) -> str:
    overrides = "".join(f" --set {override}" for override in options.set)
    suffix = f" --suffix={options.suffix}" if options.suffix else ""
    counts = f"--architectures {options.architectures} --seeds {options.seeds}"
    return f"benchmarks/landscape.py {options.name} {counts}{overrides}{suffix}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="synthetic", help="a study file under benchmarks/landscapes/")
    parser.add_argument("--quick", action="store_true", help="two architectures, one epoch")
    parser.add_argument("--architectures", type=int, default=256, help="different ones, at most")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each architecture")
    parser.add_argument("--out", type=Path, default=Path("runs/landscapes"), help="folder of the studies")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override the study file")
    parser.add_argument("--suffix", default="", help="of the study's folder and the table's file, with --set")
    return parser


if __name__ == "__main__":
    main()
