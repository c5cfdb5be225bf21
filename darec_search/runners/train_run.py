"""One Ray Train run: the same for lanes and for the final run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Type checkers see the classes of Train v1 under these names; which version they are is decided when they are imported.
_train: Any = ray.train
_torch: Any = ray.train.torch


def train_run(
    work: Callable[[Any], object],
    config: Mapping[str, Any],
    *,
    name: str,
    storage: Path,
    num_workers: int,
    cpus: float,
    gpus: float,
    max_failures: int,
    callbacks: Sequence[Any] = (),
) -> Any:
    """A `TorchTrainer`, ready for `fit()`.

    Args:
        work: runs in every worker, with the process group set up.
        config: its argument.
        name: of the run.
        storage: folder for what Ray Train itself writes, the same on every node.
        num_workers: size of the group.
        cpus: of each worker.
        gpus: of each worker, or a share of one.
        max_failures: lost workers that are replaced; -1 for any number.
        callbacks: `ray.train.UserCallback`s.
    """
    return _torch.TorchTrainer(
        work,
        train_loop_config=dict(config),
        # A worker alone talks to nobody; NCCL would refuse GPUs that Ray counts and the machine has not.
        torch_config=_torch.TorchConfig(backend="gloo") if num_workers == 1 else None,
        scaling_config=_train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=_train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=_train.FailureConfig(max_failures=max_failures),
            callbacks=list(callbacks),
        ),
    )


def one_line(error: BaseException) -> str:
    """An error of Ray as one line: its messages are whole tracebacks, of which the last line says what happened."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300] if lines else ''}".rstrip(": ")
