"""What a training would take, measured on real steps of it: the shortest, the middle and the longest of its batches."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch

from trainer.config import RunConfig
from trainer.models.backbones import is_local
from trainer.training.darec import DARecTask
from trainer.training.divergence import LossWatch
from trainer.training.evaluation import stream_tokens
from trainer.training.loop import Training
from trainer.training.warm import Judged, Materials, Warm
from trainer.training.workers import Workers, default_device

_BATCHES = 64
"""So many of the first epoch's batches are looked at."""
_SAMPLE_INTERVAL_S = 0.005

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """A figure with its lowest and highest value."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Probe:
    """What was measured of a training of one worker.

    Args:
        device: where.
        threads: of torch on the CPU.
        step_s: seconds of an optimiser step on the shortest, middle and longest batch.
        evaluation_s: seconds of an evaluation of all its users, from one of some of them.
        begin_s: seconds before the first step.
        save_s: seconds of writing a checkpoint.
        steps_per_epoch: optimiser steps of an epoch.
        users_timed: users of the evaluation that was timed.
        checkpoint_bytes: of a checkpoint.
        model_bytes: of the trained tensors.
        backbone_bytes: of the backbone's files, if it is a folder of this machine; else 0.
        memory_bytes: peak of the process, or of its tensors on a GPU, on the shortest, middle and longest batch.
    """

    device: str
    threads: int
    step_s: Range
    evaluation_s: float
    begin_s: float
    save_s: float
    steps_per_epoch: int
    users_timed: int
    checkpoint_bytes: int
    model_bytes: int
    backbone_bytes: int
    memory_bytes: Range


def probe(config: RunConfig, warm: Warm, device: str | None = None) -> Probe:
    """Measure a training of DARec or of a baseline: model, data and device are its own, and nothing of it is kept.

    What all trainings share (tokens, hard negatives, the built-in backbone) is built in `config.cache` if it is not
    there.

    Args:
        config: the training.
        warm: what this process keeps between runs.
        device: where to measure; CUDA when there is some, if absent.

    Raises:
        BadInput: if dataset or backbone cannot be used.
        torch.OutOfMemoryError, RuntimeError: if a batch does not fit the memory.
    """
    device = device or default_device()
    materials = warm.of(config)
    timed = users = len(materials.validation.targets)
    if isinstance(materials, Materials):
        materials, timed = _with_fewer_users(materials, max(64, config.optimization.batch_size), config.data.max_items)
    with tempfile.TemporaryDirectory(prefix="darec-search-probe-") as scratch:
        started = time.perf_counter()
        training = Training(config, materials, Path(scratch), device, Workers(0, 1))
        training.task.begin()
        _wait(device)
        begin_s = time.perf_counter() - started
        step_s, memory = _steps(training, _chosen(training, materials), device)
        _timed(training.rank, device)
        (evaluation_s, _), peak = _with_peak(lambda: _timed(training.rank, device), device)
        training.best = {name: tensor.detach().cpu().clone() for name, tensor in training.model.trained_state().items()}
        training.progress.best_epoch = 1
        save_s, _ = _timed(lambda: training.checkpoints.save(training.progress, training.best), device)
        saved = _bytes(Path(scratch))
    return Probe(
        device=device,
        threads=torch.get_num_threads(),
        step_s=step_s,
        evaluation_s=evaluation_s * users / timed,
        begin_s=begin_s,
        save_s=save_s,
        steps_per_epoch=training.task.steps_per_epoch,
        users_timed=timed,
        checkpoint_bytes=saved,
        model_bytes=sum(tensor.numel() * tensor.element_size() for tensor in training.best.values()),
        backbone_bytes=_backbone_bytes(materials),
        memory_bytes=replace(memory, high=max(memory.high, peak)),
    )


def _backbone_bytes(materials: Judged) -> int:
    if not isinstance(materials, Materials) or not is_local(materials.backbone.name):
        return 0
    return _bytes(Path(materials.backbone.name))


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _with_fewer_users(materials: Materials, count: int, max_items: int) -> tuple[Materials, int]:
    """Materials that are judged by an even choice of users by the length of their streams, and how many they are."""
    judged = materials.validation
    order = np.argsort(stream_tokens(materials.packer, judged.histories.newest(max_items)), kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), count)).round().astype(np.int64))]
    fewer = replace(
        judged,
        histories=judged.histories.take(chosen),
        targets=judged.targets[chosen],
        users=judged.users[chosen],
    )
    return replace(materials, validation=fewer), len(chosen)


def _chosen(training: Training, materials: Judged) -> list[int]:
    """Numbers of the shortest, the middle and the longest of the first batches, by tokens; a baseline's are alike."""
    if not isinstance(training.task, DARecTask) or not isinstance(materials, Materials):
        return [0, (training.task.steps_per_epoch - 1) // 2, training.task.steps_per_epoch - 1]
    lengths = materials.packer.lengths
    batches = islice(training.task.planner.epoch(0), _BATCHES)
    tokens = [int((lengths[batch.inputs] + 1).sum() + (lengths[batch.align_items] + 1).sum()) for batch in batches]
    order = np.argsort(tokens, kind="stable").tolist()
    return [order[0], order[len(order) // 2], order[-1]]


def _steps(training: Training, numbers: list[int], device: str) -> tuple[Range, Range]:
    """Seconds and peak memory of a step on each of the batches, after two on the longest."""
    watch = LossWatch(training.task.n_items, training.progress.first_losses, device.startswith("cuda"))
    steps = [next(training.task.steps(0, number)) for number in numbers]
    training.model.train()
    for _ in range(2):
        training.step(steps[-1], watch)
        training.progress.step += 1
    seconds, peaks = [], []
    for step in steps:
        (spent, _), peak = _with_peak(partial(_timed, partial(training.step, step, watch), device), device)
        training.progress.step += 1
        seconds.append(spent)
        peaks.append(peak)
    return Range(*sorted(seconds)), Range(*sorted(peaks))


def _timed(work: Callable[[], T], device: str) -> tuple[float, T]:
    _wait(device)
    started = time.perf_counter()
    result = work()
    _wait(device)
    return time.perf_counter() - started, result


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _with_peak(work: Callable[[], T], device: str) -> tuple[T, float]:
    """A result, and the most bytes that the process, or its tensors on a GPU, held meanwhile."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        return result, float(torch.cuda.max_memory_allocated(device))
    with _peak_of_process() as peak:
        result = work()
    return result, peak[0]


@contextmanager
def _peak_of_process() -> Iterator[list[float]]:
    process, over = psutil.Process(), threading.Event()
    peak = [float(process.memory_info().rss)]

    def sample() -> None:
        while not over.wait(_SAMPLE_INTERVAL_S):
            peak[0] = max(peak[0], float(process.memory_info().rss))

    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak[0] = max(peak[0], float(process.memory_info().rss))
