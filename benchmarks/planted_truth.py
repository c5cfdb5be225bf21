"""Does the search find architectures that are really better, where better ones exist?

python benchmarks/planted_truth.py [--quick] [--record] [--seeds 3] [--random 4] [--out runs/planted-truth]

For each seed: a synthetic catalogue of its own, the demo's study over it (search, re-test, final run), then random
architectures at the winner's loss weights trained on all users as the winner was. Prints test MRR of the winner, the
two fixed arms and the random architectures. Resumable: started again it repeats no finished training.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recording import finish

from darec_search import pipeline, runners
from darec_search.config import StudyConfig, apply_overrides, read_yaml
from darec_search.runners.base import DoneEvent
from darec_search.space import Point
from darec_search.study import Study
from darec_search.trial import Fidelity, make_spec
from trainer.data.dataset import Dataset
from trainer.inference import restore
from trainer.metrics import ranking_metrics
from trainer.training.model_file import load_model
from trainer.training.warm import Warm

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.seeds, options.random = 1, 2
    rows = [_one_seed(seed, options) for seed in range(options.seeds)]
    means = {name: statistics.fmean(row[name] for row in rows) for name in rows[0] if name != "seed"}
    line = {
        "benchmark": "planted_truth",
        "seeds": options.seeds,
        "mean_test_mrr": means,
        "winner_over_random": means["winner"] / means["random"],
        "winner_over_better_fixed_arm": statistics.fmean(r["winner"] / max(r["serial"], r["parallel"]) for r in rows),
        "per_seed": rows,
    }
    finish(line, options.record)


def _one_seed(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Test MRR by name, for one catalogue."""
    config = _config(seed, options)
    result = pipeline.run(config)
    found = {row["name"]: row["mrr"] for row in result.comparison}
    # The winning arm has no row of its own.
    table = {name: found.get(name, found["winner"]) for name in ("winner", "serial", "parallel")}
    references = {name: found[name] for name in ("popularity", "neighbours")}
    random = _random_architectures(result.study, dict(result.promotion.best.weights), options.random)
    row = {"seed": seed, **table, "random": statistics.fmean(random), "best_random": max(random), **references}
    print(json.dumps({**row, "architecture": result.promotion.reason}), flush=True)
    return row


def _config(seed: int, options: argparse.Namespace) -> StudyConfig:
    document = read_yaml(ROOT / "examples" / "demo.yaml")
    folder = options.out / f"seed-{seed}"
    overrides = [
        f"name=planted-truth-{seed}",
        f"output={folder / 'study'}",
        f"seed={seed}",
        f"data.path={folder / 'data'}",
        f"data.prepare.options.seed={seed}",
        f"cache={options.out / 'cache'}",
        "tracking.enabled=false",
        # It is about architectures, which the prior from counts hides.
        "promotion.prior=false",
    ]
    if options.quick:
        overrides += ["search.trials=3", "search.epochs=1", "optimization.epochs=1", "promotion.repeats=1"]
        overrides += ["search.weights={}", "model.backbone.builtin.steps=50", "promotion.num_workers=1"]
    return StudyConfig.model_validate(apply_overrides(document, overrides))


def _random_architectures(study: Study, weights: dict[str, float], count: int) -> list[float]:
    """Test MRR of architectures drawn uniformly, trained on all users as the winner was."""
    rng = np.random.default_rng([study.config.seed, 1])
    config = study.config
    fidelity = Fidelity(users_fraction=1.0, epochs=config.promotion.epochs or config.optimization.epochs)
    specs = []
    for place in range(count):
        point = Point(study.space.sample(rng).bits, weights)
        number = max(trial.spec.number for trial in study.trials()) + 1
        spec = make_spec(study.id, number, "full", point, config.seed, fidelity, f"random-{place}")
        specs.append(study.request(spec).spec)
    waiting = {spec.id for spec in specs if study.trial(spec.id).result is None}
    if waiting:
        with runners.create(study) as runner:
            for spec in specs:
                if spec.id in waiting:
                    runner.submit(spec)
            while waiting:
                waiting -= {event.trial_id for event in runner.wait() if isinstance(event, DoneEvent)}
    dataset, warm = Dataset.open(Path(config.data.path)).unsealed("benchmark planted_truth"), Warm()
    values = []
    for spec in specs:
        state = load_model(study.trial_folder(spec.id) / "model.safetensors")
        ranks = restore(study.run_config(spec), state, warm).ranks(dataset, "test", known_users=True)
        values.append(ranking_metrics(ranks)["mrr"])
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a few minutes less")
    parser.add_argument("--record", action="store_true", help="append the result to results/planted_truth.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random", type=int, default=4, help="random architectures a seed")
    parser.add_argument("--out", type=Path, default=Path("runs/planted-truth"))
    return parser


if __name__ == "__main__":
    main()
