"""Checkpoints of a run that can go on: safetensors and JSON, a folder each, made visible by a rename.

`epoch-<n>` is written when epoch n has ended, `epoch-<n>-step-<s>` s steps into the next one. Batches follow from seed,
epoch and step, and nothing draws from torch's own generators; so weights, optimiser, sums of losses and these counts
are all that a run needs to go on bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW

from trainer.models.network import Network
from trainer.training.averaging import WeightAverage
from trainer.training.result import Row, write_atomic
from trainer.training.workers import Workers

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Optimiser steps done."""
    epoch_step: int = 0
    """Steps done of the epoch under way."""
    sums: dict[str, float] = field(default_factory=dict)
    """Losses of these steps, summed, by name."""
    first_losses: dict[str, float] = field(default_factory=dict)
    """Losses of the run's first step."""
    best_epoch: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    curve: list[Row] = field(default_factory=list)
    wall_s: float = 0.0
    """Seconds spent by this and all earlier attempts."""
    cpu_s: float = 0.0


class Checkpoints:
    """The newest checkpoint of a run in a folder of its own.

    Args:
        folder: holds nothing else.
        model: its trained tensors are saved and set.
        optimizer: its moments are saved and set.
        average: its tensors are saved and set, if there is one.
    """

    def __init__(self, folder: Path, model: Network, optimizer: AdamW, average: WeightAverage | None = None) -> None:
        self._folder, self._model, self._optimizer, self._average = folder, model, optimizer, average
        self._best = (-1, "")
        """Epoch and digest of the best state on disk."""

    def save(self, progress: Progress, best: dict[str, Tensor]) -> None:
        """Write a checkpoint and remove older ones. A crash leaves the old checkpoint or the new one whole."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self._folder, prefix=".writing-"))
        digests = {
            "model.safetensors": _save(self._model.trained_state(), temporary / "model.safetensors"),
            "optimizer.safetensors": _save(_optimizer_tensors(self._optimizer), temporary / "optimizer.safetensors"),
        }
        if self._average is not None:
            tensors = _numbered(self._average.tensors)
            digests["average.safetensors"] = _save(tensors, temporary / "average.safetensors")
        kept = []
        if progress.best_epoch is not None:
            # Beside the checkpoints, since most of them share it.
            kept = [_best_name(progress.best_epoch)]
            if progress.best_epoch != self._best[0]:
                self._best = progress.best_epoch, _save(best, temporary / kept[0])
                (temporary / kept[0]).replace(self._folder / kept[0])
            digests[kept[0]] = self._best[1]
        document = {"progress": asdict(progress), "sha256": digests}
        write_atomic(temporary / "progress.json", json.dumps(document))
        final = self._folder / _name(progress.epoch, progress.epoch_step)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        self._remove_all_but(final.name, *kept)

    def restore(self, workers: Workers, device: str) -> tuple[Progress, dict[str, Tensor]] | None:
        """Set model and optimiser to the newest usable checkpoint, the one that rank 0 finds, on every worker.

        A checkpoint that cannot be read, has changed or does not fit is left aside with a warning: its part of the run
        is computed again, never trusted.

        Returns:
            Its progress and best state; None if there is none.
        """
        found = self._newest() if workers.rank == 0 else None
        at = (-1, 0) if found is None else (found[0].epoch, found[0].epoch_step)
        epoch, epoch_step = workers.from_first(at, device)
        if epoch < 0:
            return None
        return found or self._load(self._folder / _name(epoch, epoch_step))

    def _newest(self) -> tuple[Progress, dict[str, Tensor]] | None:
        for candidate in sorted(self._folder.glob("epoch-*"), reverse=True):
            try:
                return self._load(candidate)
            except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
                logger.warning("checkpoint %s is not usable (%s); that part of the run is repeated", candidate, error)
        return None

    def _load(self, candidate: Path) -> tuple[Progress, dict[str, Tensor]]:
        document = json.loads((candidate / "progress.json").read_text(encoding="utf-8"))
        progress, digests = Progress(**document["progress"]), document["sha256"]
        state = _load(candidate / "model.safetensors", digests)
        moments = _load(candidate / "optimizer.safetensors", digests)
        best: dict[str, Tensor] = {}
        if progress.best_epoch is not None:
            name = _best_name(progress.best_epoch)
            best = _load(self._folder / name, digests)
            self._best = progress.best_epoch, digests[name]
        averaged = {} if self._average is None else _load(candidate / "average.safetensors", digests)
        optimizer_state = _optimizer_state(self._optimizer, moments)
        self._model.load_trained_state(state)
        if self._average is not None:
            for name, tensor in _numbered(self._average.tensors).items():
                tensor.copy_(averaged[name])
        self._optimizer.load_state_dict(optimizer_state)
        return progress, best

    def _remove_all_but(self, *names: str) -> None:
        for other in self._folder.iterdir():
            if other.name in names:
                continue
            if other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
            else:
                other.unlink(missing_ok=True)


def _numbered(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {str(number): tensor for number, tensor in enumerate(tensors)}


def _name(epoch: int, epoch_step: int) -> str:
    return f"epoch-{epoch:05d}" + (f"-step-{epoch_step:07d}" if epoch_step else "")


def _best_name(epoch: int) -> str:
    return f"best-{epoch:05d}.safetensors"


def _save(state: dict[str, Tensor], file: Path) -> str:
    """Write tensors to the disk itself; the file's digest."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, file)
    with file.open("rb") as written:
        os.fsync(written.fileno())
        return hashlib.file_digest(written, "sha256").hexdigest()


def _load(file: Path, digests: dict[str, str]) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != digests[file.name]:
            raise ValueError(f"{file.name} has changed since it was written")
    return load_file(file)


def _optimizer_tensors(optimizer: AdamW) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, moments in state.items() for name, value in moments.items()}


def _optimizer_state(optimizer: AdamW, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A state dict from `_optimizer_tensors`; ValueError where it does not fit the optimiser's parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    shapes = {index: moment["exp_avg"].shape for index, moment in moments.items()}
    if shapes != {index: parameter.shape for index, parameter in enumerate(parameters)}:
        raise ValueError("the optimiser's moments do not fit this model")
    return {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
