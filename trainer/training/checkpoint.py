"""Checkpoints of a run that can go on: safetensors and JSON, one folder an epoch, made visible by a rename."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW

from trainer.models.darec import DARec
from trainer.training.result import Row

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Optimiser steps done."""
    best_epoch: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    curve: list[Row] = field(default_factory=list)
    wall_s: float = 0.0
    """Seconds spent by this and all earlier attempts."""
    cpu_s: float = 0.0


def save_checkpoint(folder: Path, progress: Progress, model: DARec, best: dict[str, Tensor], optimizer: AdamW) -> None:
    """Write `folder/epoch-<n>` and remove older ones. A crash leaves the old checkpoint or the new one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    save_file(_contiguous(model.trained_state()), temporary / "model.safetensors")
    save_file(_contiguous(best), temporary / "best.safetensors")
    save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
    (temporary / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    final = folder / f"epoch-{progress.epoch:05d}"
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(folder: Path, model: DARec, optimizer: AdamW) -> tuple[Progress, dict[str, Tensor]] | None:
    """The newest checkpoint's progress and best state, with model and optimiser set to it; None without a usable one.

    A checkpoint that cannot be read or does not fit is left aside with a warning and the run starts over: it is
    recomputed, never trusted.
    """
    for candidate in sorted(folder.glob("epoch-*"), reverse=True):
        try:
            progress = Progress(**json.loads((candidate / "progress.json").read_text(encoding="utf-8")))
            state = load_file(candidate / "model.safetensors")
            best = load_file(candidate / "best.safetensors")
            optimizer_tensors = load_file(candidate / "optimizer.safetensors")
            model.load_trained_state(state)
            _restore_optimizer(optimizer, optimizer_tensors)
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            logger.warning("checkpoint %s is not usable (%s); the run starts over", candidate, error)
            continue
        return progress, best
    return None


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _optimizer_tensors(optimizer: AdamW) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, moments in state.items()
        for name, value in moments.items()
    }


def _restore_optimizer(optimizer: AdamW, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
