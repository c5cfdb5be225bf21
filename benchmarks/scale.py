"""Time and memory at ten million interactions and a million items.

python benchmarks/scale.py [--quick] [--record] [--parts generate prepare_parquet …] [--users 1000000] [--items 1000000]
                           [--rounds 10] [--drawn-negatives] [--out runs/scale]

Each part runs in a process of its own, so that its peak memory is its own, and builds on what earlier ones left in
`--out`. Needs the extra `ann`. The shop is made up (`large/shop.py`), so scores on it would say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recording import finish

PARTS = ("generate", "prepare_parquet", "prepare_tsv", "negatives", "plan", "train")
COMMON = ("seconds", "processor_s", "peak_mib")
QUICK = {"users": 20_000, "items": 20_000, "batches": 500, "steps": 5, "ranked": 500}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    if options.part:
        from large import parts  # the parent stays small: a child's peak begins with its parent's

        print(json.dumps(parts.run(options.part, options)))
        return
    figures = {name: _in_a_process(name, options) for name in options.parts}
    sizes = {name: getattr(options, name) for name in ("users", "items", "rounds")}
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    finish({"benchmark": "scale", **sizes, "threads": threads, "parts": figures}, options.record)


def _in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part and print its line of the table."""
    chosen = [
        f"--{key}={getattr(options, key)}" for key in ("users", "items", "rounds", "batches", "steps", "ranked", "out")
    ]
    command = [sys.executable, __file__, f"--part={name}", *chosen, *(["--drawn-negatives"] * options.drawn_negatives)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    others = ", ".join(f"{key} {value}" for key, value in figures.items() if key not in COMMON)
    cost = f"{figures['seconds']:9.1f} s{figures['processor_s']:9.1f} s of processor{figures['peak_mib']:8} MiB"
    print(f"{name:16}{cost}   {others}", flush=True)
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 interactions and 20,000 items, about a minute")
    parser.add_argument(
        "--drawn-negatives",
        action="store_true",
        help="draw hard negatives at random, where mining is left out by --parts",
    )
    parser.add_argument("--record", action="store_true", help="append the result to results/scale.jsonl")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=10, help="interactions a user")
    parser.add_argument("--batches", type=int, default=5_000, help="batches to plan")
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps")
    parser.add_argument("--ranked", type=int, default=2_000, help="users to rank for")
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    return parser


if __name__ == "__main__":
    main()
