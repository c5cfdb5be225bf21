"""The parts of `scale.py`, each run in a process of its own: figures by name."""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from large.shop import write_shop
from trainer.config import RunConfig
from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged

Figures = dict[str, Any]
_DRAWN = 50


def generate(options: argparse.Namespace) -> Figures:
    """Write the raw shop."""
    shutil.rmtree(options.out, ignore_errors=True)
    (options.out / "raw").mkdir(parents=True)
    write_shop(options.out / "raw", options.users, options.items, options.rounds)
    return {"interactions": options.users * options.rounds}


def prepare_parquet(options: argparse.Namespace) -> Figures:
    """Raw shop → dataset folder, from Parquet."""
    return _prepare(options, "parquet")


def prepare_tsv(options: argparse.Namespace) -> Figures:
    """The same from tsv; both give one fingerprint."""
    return _prepare(options, "tsv")


def _prepare(options: argparse.Namespace, kind: str) -> Figures:
    from trainer.data.prepare import prepare

    manifest = prepare(
        "table",
        options.out / "raw",
        options.out / kind,
        interactions=f"interactions.{kind}",
        min_item_interactions=1,
    )
    return {"interactions": manifest.interactions, "items": manifest.items, "fingerprint": manifest.fingerprint}


def negatives(options: argparse.Namespace) -> Figures:
    """Mine hard negatives of every item by the index."""
    from trainer.data.negatives import hard_negatives

    dataset = Dataset.open(options.out / "parquet")
    found = hard_negatives(dataset, _config(options).negatives, options.out / "cache")
    return {"items": dataset.n_items, "mean_per_item": _rounded(float(found.lengths.mean()))}


def plan(options: argparse.Namespace) -> Figures:
    """Open the dataset and plan batches."""
    from trainer.data.batches import BatchPlanner

    started = time.perf_counter()
    dataset = Dataset.open(options.out / "parquet")
    opened = time.perf_counter()
    config = _config(options)
    hard = _hard_negatives(dataset, config, options)
    loaded = time.perf_counter()
    batches = BatchPlanner(dataset.train, dataset.n_items, hard, config, cf_negatives=4).epoch(0)
    next(batches)
    first = time.perf_counter()
    count = sum(1 for _ in itertools.islice(batches, options.batches))
    per_second = round(count / (time.perf_counter() - first), 1)
    return {
        "open_s": _rounded(opened - started),
        "load_negatives_s": _rounded(loaded - opened),
        "first_batch_s": _rounded(first - loaded),
        "batches_per_s": per_second,
    }


def train(options: argparse.Namespace) -> Figures:
    """Optimiser steps of all four losses with a sampled softmax, then the rank of some users' items among all."""
    import torch

    from trainer.device import default_device
    from trainer.losses import darec_losses
    from trainer.training.evaluation import rank_users
    from trainer.training.feed import steps, to_device
    from trainer.training.loop import Training
    from trainer.training.warm import Warm

    config, device = _config(options), default_device()
    started = time.perf_counter()
    # Without L_cl nothing is mined here: the negatives are the part `negatives`, or drawn.
    unmined = config.model_copy(update={"losses": config.losses.model_copy(update={"contrastive": 0.0})})
    materials = Warm().materials(unmined)
    materials = replace(materials, hard_negatives=_hard_negatives(materials.dataset, config, options))
    training = Training(config, materials, options.out / "run", device)
    times = [time.perf_counter()]
    source = steps(
        training.planner, materials.packer, training.workers, epoch=0, start=0, parts=1, pin=False, stand_in=False
    )
    for step in itertools.islice(source, options.steps):
        training.optimizer.zero_grad(set_to_none=True)
        darec_losses(training.model, to_device(step.parts[0][0], device), config.losses)["total"].backward()
        torch.nn.utils.clip_grad_norm_(training.trained, config.optimization.max_grad_norm)
        training.optimizer.step()
        times.append(time.perf_counter())
    after_steps = _peak_mib()
    dataset, some = materials.dataset, np.arange(min(options.ranked, materials.dataset.n_users))
    ranks = rank_users(
        training.model.eval(),
        materials.packer,
        dataset.train.take(some),
        dataset.validation[some],
        max_items=config.data.max_items,
        device=device,
        workers=training.workers,
    ).ranks
    return {
        "device": device,
        "materials_s": _rounded(times[0] - started),
        # The first step allocates.
        "step_s": _rounded(float(np.median(np.diff(times[1:])))),
        "step_peak_mib": after_steps,
        "ranked_users_per_s": _rounded(len(ranks) / (time.perf_counter() - times[-1])),
        "trained_parameters": sum(parameter.numel() for parameter in training.trained),
    }


def _hard_negatives(dataset: Dataset, config: RunConfig, options: argparse.Namespace) -> Ragged:
    """The mined ones, or as many drawn at random as a step's cost depends on, where mining is left out."""
    from trainer.data.negatives import hard_negatives

    if not options.drawn_negatives:
        return hard_negatives(dataset, config.negatives, options.out / "cache")
    drawn = np.random.default_rng(0).integers(0, dataset.n_items, (dataset.n_items, _DRAWN))
    return Ragged.from_lengths(drawn.ravel(), np.full(dataset.n_items, _DRAWN))


def _config(options: argparse.Namespace) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"path": str(options.out / "parquet"), "max_item_tokens": 16},
            "model": {"backbone": {"builtin": {"steps": 10}}},
            "losses": {"sampled_items": min(8192, options.items // 10)},
            "negatives": {"search": "approximate"},
            "optimization": {"batch_size": 64},
            "cache": str(options.out / "cache"),
        }
    )


def run(name: str, options: argparse.Namespace) -> Figures:
    """One part's figures, with its time and the peak of this process's memory."""
    started = time.perf_counter()
    figures = PARTS[name](options)
    seconds, processor = _rounded(time.perf_counter() - started), _rounded(time.process_time())
    return {"seconds": seconds, "processor_s": processor, "peak_mib": _peak_mib(), **figures}


def _peak_mib() -> int:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def _rounded(value: float) -> float:
    return round(value, 2)


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    part.__name__: part for part in (generate, prepare_parquet, prepare_tsv, negatives, plan, train)
}
