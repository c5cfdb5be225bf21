"""How many users a second does `recommend` serve, and is it still what the slow path gives?

python benchmarks/recommend.py [--quick] [--record] [--users 6000] [--rounds 5] [--threads N] [--profile]

The demo's model: its catalogue of 200 items, built-in decoder of 3 layers, 64 wide, adapters of 32, NCF of 16, with
random trained tensors. Each round recommends ten items after the histories of `--users` users who were not trained on,
by `Recommender.recommend` from item ids to titles; a few of them then one user at a time. Both must name the same
items. `users_per_s` is the median of the rounds; `users_per_cpu_s` divides by the process's CPU time, all threads
together, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from recording import finish

from darec_search.card import Card
from darec_search.recommender import Recommendation, Recommender
from trainer.config import ModelConfig
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.inference import TrainedModel, assemble
from trainer.models.backbones import load_backbone
from trainer.models.backbones.builtin import build_builtin
from trainer.models.darec import DARec
from trainer.models.streams import PROMPT

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.users, options.rounds = 600, 1
    if options.threads:
        torch.set_num_threads(options.threads)
    recommender, histories = _demo(options.users)
    found = recommender.recommend(histories[:64])  # warms up
    if options.profile:
        _profile(lambda: recommender.recommend(histories))
    started = time.process_time()
    rounds = [_timed(lambda: recommender.recommend(histories)) for _ in range(options.rounds)]
    of_cpu = len(histories) * options.rounds / (time.process_time() - started)
    fast = statistics.median(len(histories) / seconds for seconds, _ in rounds)
    few = histories[:: max(len(histories) // 50, 1)]
    seconds, slow = _timed(lambda: [recommender.recommend([history])[0] for history in few])
    found = rounds[0][1][:: max(len(histories) // 50, 1)]
    same = all(_alike(one, other) for one, other in zip(slow, found, strict=True))
    print(f"{fast:,.0f} users a second; one at a time {len(few) / seconds:,.0f}; the same lists: {same}")
    line = {
        "benchmark": "recommend",
        "users_per_s": round(fast, 1),
        "users_per_cpu_s": round(of_cpu, 1),
        "one_at_a_time_per_s": round(len(few) / seconds, 1),
        "ratio": round(fast * seconds / len(few), 1),
        "same": same,
        "users": len(histories),
        "threads": torch.get_num_threads(),
    }
    finish(line, options.record)


def _demo(users: int) -> tuple[Recommender, list[list[str]]]:
    """The demo's model with random trained tensors, and histories of its users, again and again."""
    demo = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    data, config = demo["data"], ModelConfig.model_validate(demo["model"])
    with tempfile.TemporaryDirectory() as folder:
        prepare("synthetic", None, Path(folder) / "data", **data["prepare"]["options"])
        dataset = Dataset.open(Path(folder) / "data")
        quick = config.backbone.builtin.model_copy(update={"steps": 5})
        build_builtin(quick, dataset.sentences, PROMPT, Path(folder) / "backbone")
        local = config.backbone.model_copy(update={"name": str(Path(folder) / "backbone")})
        config = config.model_copy(update={"backbone": local})
        trained = _random(config, dataset, data)
    ids = list(dataset.item_ids)
    rows = dataset.inputs("test")
    histories = [[ids[item] for item in rows[user % dataset.n_users]] for user in range(users)]
    items = {"id": ids, "title": list(dataset.titles), "sentence": list(dataset.sentences)}
    return Recommender(_card(config, dataset, data), trained, items, list(dataset.user_ids)), histories


def _random(config: ModelConfig, dataset: Dataset, data: dict[str, int]) -> TrainedModel:
    torch.manual_seed(0)
    sizes = (dataset.n_users, dataset.n_items)
    model = DARec(load_backbone(config.backbone.name).model, config, *sizes)
    state = {name: torch.randn_like(tensor) * 0.1 for name, tensor in model.trained_state().items()}
    trained = assemble(
        config, dataset.sentences, state, n_users=dataset.n_users, max_items=data["max_items"],
        max_item_tokens=data["max_item_tokens"],
    )  # fmt: skip
    return trained.folding_in(trained.fitted_fold_in(dataset))


def _card(config: ModelConfig, dataset: Dataset, data: dict[str, int]) -> Card:
    return Card.model_validate(
        {
            "study": "demo", "study_id": "", "architecture": "SSS-SSS-SSS", "bits": (0,) * 9, "model": config,
            "losses": {}, "seed": 0, "epochs": 1, "best_epoch": None, "users": dataset.n_users,
            "items": dataset.n_items, "max_items": data["max_items"], "max_item_tokens": data["max_item_tokens"],
            "fingerprint": dataset.fingerprint, "metrics": {}, "versions": {}, "commit": None, "sha256": "",
            "items_sha256": "",
        }
    )  # fmt: skip


def _alike(one: Sequence[Recommendation], other: Sequence[Recommendation]) -> bool:
    """The same items, but for ties to rounding."""
    scores = np.array([[item.score for item in items] for items in (one, other)])
    close = bool(np.allclose(scores[0], scores[1], atol=1e-4))
    return close and all(a.id == b.id or abs(a.score - b.score) < 1e-4 for a, b in zip(one, other, strict=True))


def _timed(work: Callable[[], list[list[Recommendation]]]) -> tuple[float, list[list[Recommendation]]]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _profile(work: Callable[[], object]) -> None:
    with cProfile.Profile() as profile:
        work()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 users, one round")
    parser.add_argument("--record", action="store_true", help="append the result to results/recommend.jsonl")
    parser.add_argument("--users", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch's own number when absent")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    return parser


if __name__ == "__main__":
    main()
