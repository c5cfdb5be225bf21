"""How fast are all users ranked over all items, and how much faster than the model as it is usually written?

python benchmarks/inference.py [--quick] [--record] [--rounds 3] [--sample 512] [--literal 6]

Amazon Scientific (random users of its size where it is not at hand) with a random OPT of 4 layers, 128 wide; fp32, on
the CPU. Timed in turn, round by round, on the same users, weights and threads:

- the project's evaluation, `trainer.training.evaluation.rank_users`;
- padded_darec.py: batches of 32 users as they come, padded to the longest, dense masks; scores of all items at once;
- the literal reference of the tests, on a few users of the round, its time scaled to all of them.

`users_per_second` is the project's over all users. On a GPU also Pantry's size with OPT-125M's shape in bfloat16
(14,178 users, 4,961 items; the paper took 142 s on four RTX 3090).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from literal_darec import ReferenceDARec
from numpy.typing import NDArray
from padded_darec import PaddedDARec
from recording import finish
from torch import Tensor
from workloads import MAX_ITEMS, Workload, random_darec, random_opt, random_users, scientific

from trainer.metrics import ranks
from trainer.models.darec import DARec
from trainer.training.evaluation import rank_users
from trainer.training.precision import autocast, hold_in
from trainer.training.workers import Workers

PAPER_SECONDS = 142
_PADDED_BATCH = 32


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.rounds, options.sample, options.literal = 1, 64, 2
    line = {"benchmark": "inference", **_cpu(options)}
    if torch.cuda.is_available():
        line |= _gpu(options)
    finish(line, options.record)


@torch.no_grad()
def _cpu(options: argparse.Namespace) -> dict[str, Any]:
    """Users a second and both ratios."""
    workload, opt = scientific(), random_opt(layers=4, hidden=128, heads=4)
    model, config = random_darec(opt, workload)
    reference = ReferenceDARec(opt, model.trained_state(), config)
    rounds = [_round(model, reference, workload, number, options) for number in range(options.rounds)]
    ratios, literal_ratios = ([row[place] for row in rounds] for place in (0, 1))
    whole = workload.take(np.arange(options.sample)) if options.quick else workload
    seconds, _ = _timed(lambda: _ours(model, whole))
    print(f"{len(whole.targets):,} users in {seconds:.1f} s on {torch.get_num_threads()} threads")
    return {
        "data": workload.name,
        "users": len(whole.targets),
        "items": len(workload.tokens),
        "threads": torch.get_num_threads(),
        "users_per_second": round(len(whole.targets) / seconds, 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_literal": round(statistics.median(literal_ratios), 1),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def _round(
    model: DARec, reference: ReferenceDARec, workload: Workload, number: int, options: argparse.Namespace
) -> tuple[float, float]:
    """How many times longer padded and literal take on a sample of the users; taken as the model's first ones."""
    drawn = np.random.default_rng(number).choice(len(workload.targets), options.sample, replace=False)
    part = workload.take(drawn)
    few = _evenly(part, options.literal)
    ours, found = _timed(lambda: _ours(model, part))
    padded, expected = _timed(lambda: _padded(model, part))
    literal, literally = _timed(lambda: _literal(reference, part, few))
    print(
        f"round {number}: {len(drawn)} users, ours {ours:.2f} s, padded {padded:.2f} s (same rank for "
        f"{(found == expected).double().mean():.1%}), literal {literal:.2f} s for {len(few)} "
        f"({(found[few] == literally).double().mean():.0%})",
        flush=True,
    )
    return padded / ours, literal / len(few) * len(drawn) / ours


def _timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _ours(model: DARec, workload: Workload, device: str = "cpu") -> Tensor:
    return rank_users(
        model, workload.packer, workload.histories, workload.targets,
        max_items=MAX_ITEMS, device=device, workers=Workers(0, 1),
    ).ranks  # fmt: skip


def _padded(model: DARec, workload: Workload) -> Tensor:
    padded = PaddedDARec(model, workload.tokens, workload.prompt)
    parts = []
    for start in range(0, len(workload.targets), _PADDED_BATCH):
        users = np.arange(start, min(start + _PADDED_BATCH, len(workload.targets)))
        states = padded.states([workload.histories[user][-MAX_ITEMS:] for user in users], users)
        parts.append(ranks(model.item_head(states), torch.from_numpy(workload.targets[users])))
    return torch.cat(parts)


def _literal(reference: ReferenceDARec, workload: Workload, users: NDArray[np.int64]) -> Tensor:
    tokens = [row.tolist() for row in workload.tokens]
    parts = []
    for user in users:
        history = workload.histories[user][-MAX_ITEMS:].tolist()
        state = reference.sequence_states(tokens, history, int(user))[-1]
        scores = reference.w["item_head.weight"] @ state + reference.w["item_head.bias"]
        parts.append(ranks(scores[None], torch.tensor([workload.targets[user]])))
    return torch.cat(parts)


def _evenly(workload: Workload, count: int) -> NDArray[np.int64]:
    """Users at even steps of the history's length, so that a few stand for all."""
    by_length = np.argsort(workload.histories.lengths, kind="stable")
    return by_length[((np.arange(count) + 0.5) / count * len(by_length)).astype(np.int64)]


@torch.no_grad()
def _gpu(options: argparse.Namespace) -> dict[str, Any]:
    """Pantry's size with OPT-125M's shape: seconds, after a first pass that warms up."""
    workload = random_users("pantry-sized", 14_178, 4_961, 8.24)
    model, _ = random_darec(random_opt(layers=12, hidden=768, heads=12, vocabulary=50_272), workload)
    hold_in(model.backbone, "bfloat16")
    model.to("cuda")
    workload = workload.take(np.arange(512)) if options.quick else workload
    with autocast("bfloat16", "cuda"):
        _ours(model, workload, "cuda")
        torch.cuda.reset_peak_memory_stats()
        seconds, _ = _timed(lambda: _ours(model, workload, "cuda"))
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(f"{workload.name}: {len(workload.targets):,} users in {seconds:.2f} s; the paper: {PAPER_SECONDS} s")
    return {
        "pantry_users": len(workload.targets),
        "pantry_seconds": round(seconds, 2),
        "pantry_peak_gib": round(memory, 2),
        "gpu": torch.cuda.get_device_name(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 64 users")
    parser.add_argument("--record", action="store_true", help="append the result to results/inference.jsonl")
    parser.add_argument("--rounds", type=int, default=3, help="each on users of its own")
    parser.add_argument("--sample", type=int, default=512, help="users of a round")
    parser.add_argument("--literal", type=int, default=6, help="users of a round that the literal reference ranks")
    return parser


if __name__ == "__main__":
    main()
