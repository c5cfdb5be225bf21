"""How long are one epoch and the paper's 40 at Pantry's size?

python benchmarks/epoch.py [--quick] [--record] [--batch-size 8] [--share 0.05]

A synthetic catalogue of Pantry's size (14,178 users, 4,961 items, histories of 9.2 items), trained by the project's own
run: all losses, one optimiser step a batch, full-ranking validation at the end of the epoch. On a GPU with OPT-125M's
shape in bfloat16, beside the paper's 2.25 h for 40 epochs on four RTX 3090 (Table 4). Without one the same on the CPU
with a share of the users and items and a random OPT of 4 layers, 128 wide; that says nothing about the paper's time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from recording import finish
from workloads import random_opt

from trainer.config import RunConfig
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.models.backbones.builtin import build_builtin
from trainer.training.run import run
from trainer.training.warm import Warm

GPU = torch.cuda.is_available()
USERS, ITEMS, MEAN_LENGTH = 14_178, 4_961, 11.2
"""Pantry (Table 1: 9.24 items a sequence are its training part, two more are held out)."""
PAPER_HOURS, EPOCHS = 2.25, 40


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    share = 1.0 if GPU and not options.quick else options.share
    with tempfile.TemporaryDirectory() as folder:
        line = {"benchmark": "epoch", **_one_epoch(Path(folder), share, options.batch_size)}
    finish(line, options.record)


def _one_epoch(folder: Path, share: float, batch_size: int) -> dict[str, Any]:
    users, items = round(USERS * share), max(round(ITEMS * share), 100)
    prepare("synthetic", None, folder / "data", users=users, items=items, mean_length=MEAN_LENGTH)
    config = _config(folder, batch_size)
    warm = Warm()
    warm.materials(config)  # tokens and hard negatives are made once a study, not once an epoch
    result = run(config, folder / "run", warm=warm)
    if result.status != "finished":
        raise SystemExit(f"the run is {result.status}: {result.reason}")
    seconds = result.curve[-1]["seconds"]
    if share < 1:
        print(f"{users:,} of Pantry's {USERS:,} users and {items:,} of its {ITEMS:,} items, on {_device()}")
    print(f"one epoch with validation {seconds:.1f} s, {EPOCHS} epochs {seconds * EPOCHS / 60:.1f} min")
    return {
        "device": _device(),
        "layers": 12 if GPU else 4,
        "hidden": 768 if GPU else 128,
        "users": users,
        "items": items,
        "batch_size": batch_size,
        "epoch_s": round(seconds, 1),
        "epochs_40_h": round(seconds * EPOCHS / 3600, 3),
        "paper_h": PAPER_HOURS if share == 1 else None,
    }


def _config(folder: Path, batch_size: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"path": str(folder / "data")},
            "model": {"backbone": {"name": str(_backbone(folder))}},
            "optimization": {"epochs": 1, "batch_size": batch_size},
            "execution": {"precision": "bfloat16" if GPU else "float32"},
            "cache": str(folder / "cache"),
        }
    )


def _backbone(folder: Path) -> Path:
    """A model folder with random weights and a tokenizer of the catalogue's own text."""
    out = folder / "backbone"
    out.mkdir()
    tiny = RunConfig.model_validate({"data": {"path": "-"}}).model.backbone.builtin.model_copy(update={"steps": 1})
    build_builtin(tiny, Dataset.open(folder / "data").sentences, "", out)  # its tokenizer stays, its weights do not
    random_opt(12 if GPU else 4, 768 if GPU else 128, 12 if GPU else 4, tiny.vocabulary).save_pretrained(out)
    return out


def _device() -> str:
    return torch.cuda.get_device_name() if GPU else f"cpu, {torch.get_num_threads()} threads"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a share of the users on a GPU too")
    parser.add_argument("--record", action="store_true", help="append the result to results/epoch.jsonl")
    parser.add_argument("--batch-size", type=int, default=8, help="users a step; Table 3 has 8 for Pantry")
    parser.add_argument("--share", type=float, default=0.05, help="share of the users and items without a GPU")
    return parser


if __name__ == "__main__":
    main()
