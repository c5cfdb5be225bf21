"""The training loop of DARec (Section 2.4): joint losses, best checkpoint by validation MRR."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.config import RunConfig
from trainer.data.batches import Batch, BatchPlanner, shard
from trainer.losses import StepInput, darec_losses
from trainer.metrics import ranking_metrics
from trainer.models.darec import DARec
from trainer.models.streams import StreamPacker
from trainer.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainer.training.evaluation import rank_targets
from trainer.training.optimizer import create_optimizer, set_learning_rate
from trainer.training.pretrain import pretrain_collaborative
from trainer.training.result import Row, write_atomic
from trainer.training.warm import Materials
from trainer.training.workers import Workers


class Diverged(RuntimeError):  # noqa: N818 - a status, not a fault of the code
    """A loss or a parameter is no longer finite."""


class Training:
    """One run in progress.

    Args:
        config: the run.
        materials: dataset, backbone, streams and negatives.
        folder: where `checkpoint/` and `curve.jsonl` go.
        device: where to train.
        workers: this process's place among the workers.
    """

    def __init__(
        self, config: RunConfig, materials: Materials, folder: Path, device: str, workers: Workers | None = None
    ) -> None:
        self.config, self.materials, self.folder, self.device = config, materials, folder, device
        self.workers = workers or Workers.current()
        self.model = create_model(config, materials).to(device)
        collaborative = self.model.collaborative
        joint = collaborative is not None and config.model.collaborative.training == "joint"
        self.planner = BatchPlanner(
            materials.dataset.train,
            materials.dataset.n_items,
            materials.hard_negatives,
            config,
            collaborative.negatives if collaborative is not None and joint else 0,
        )
        self.optimizer = create_optimizer(self.model, config.optimization)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.first_step_at: float | None = None
        self.earlier = (0.0, 0.0)
        """Wall and processor seconds of earlier attempts."""
        self._started = (time.monotonic(), time.process_time())

    def run(self, on_row: Callable[[Row], None] | None = None) -> Progress:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            Diverged: if a loss is not finite.
        """
        restored = load_checkpoint(self.folder / "checkpoint", self.model, self.optimizer)
        if restored is not None:
            self.progress, self.best = restored
        elif self.model.collaborative is not None and self.config.model.collaborative.training == "frozen":
            pretrain_collaborative(self.model.collaborative, self.materials.dataset.train, self.config, self.device)
        self.earlier = (self.progress.wall_s, self.progress.cpu_s)
        self._write_curve()
        while self.progress.epoch < self.config.optimization.epochs and not self._out_of_patience():
            losses = self._train_epoch()
            self._evaluate(losses)
            self._record(on_row)
        return self.progress

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the users; mean losses by name."""
        self.model.train()
        total_steps = self.config.optimization.epochs * self.planner.steps_per_epoch
        totals: dict[str, Tensor] = {}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for whole in self.planner.epoch(self.progress.epoch):
            self.first_step_at = self.first_step_at or time.time()
            batch = shard(whole, self.workers.rank, self.workers.world)
            set_learning_rate(self.optimizer, self.config.optimization, self.progress.step, total_steps)
            self.optimizer.zero_grad(set_to_none=True)
            if len(batch.users):
                losses = self._losses(batch)
                losses["total"].backward()
                for name, value in losses.items():
                    totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.detach()
            self.workers.sum_gradients(trained)
            torch.nn.utils.clip_grad_norm_(trained, self.config.optimization.max_grad_norm)
            self.optimizer.step()
            self.progress.step += 1
        self.progress.epoch += 1
        return self._mean_losses(totals)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        step = to_step_input(batch, self.materials.packer, self.device)
        with autocast(self.config, self.device):
            return darec_losses(self.model, step, self.config.losses)

    def _mean_losses(self, totals: dict[str, Tensor]) -> dict[str, float]:
        names = ("sequence", "align", "contrastive", "collaborative", "total")
        zero = torch.zeros((), device=self.device)
        summed = self.workers.sum(torch.stack([totals.get(name, zero).float() for name in names]))
        means = (summed / max(self.planner.steps_per_epoch, 1)).tolist()
        if not all(map(math.isfinite, means)):
            raise Diverged(f"the loss is no longer finite in epoch {self.progress.epoch}")
        return {f"loss/{name}": value for name, value in zip(names, means, strict=True) if name in totals}

    def _evaluate(self, losses: dict[str, float]) -> None:
        dataset = self.materials.dataset
        self.model.eval()
        with autocast(self.config, self.device):
            ranks = rank_targets(
                self.model,
                self.materials.packer,
                dataset.train,
                dataset.validation,
                max_items=self.config.data.max_items,
                device=self.device,
                workers=self.workers,
            )
        metrics = ranking_metrics(ranks)
        progress = self.progress
        progress.wall_s = self.earlier[0] + time.monotonic() - self._started[0]
        progress.cpu_s = self.earlier[1] + time.process_time() - self._started[1]
        at = {"epoch": progress.epoch, "step": progress.step, "time": time.time(), "seconds": progress.wall_s}
        progress.curve.append({**at, **losses, **metrics})
        if metrics["mrr"] > progress.best_metrics.get("mrr", -1.0):
            progress.best_epoch, progress.best_metrics = progress.epoch, metrics
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.trained_state().items()}

    def _record(self, on_row: Callable[[Row], None] | None) -> None:
        if self.workers.rank:
            return
        save_checkpoint(self.folder / "checkpoint", self.progress, self.model, self.best, self.optimizer)
        self._write_curve()
        if on_row is not None:
            on_row(self.progress.curve[-1])

    def _write_curve(self) -> None:
        if self.workers.rank == 0:
            lines = [json.dumps(row) + "\n" for row in self.progress.curve]
            write_atomic(self.folder / "curve.jsonl", "".join(lines))

    def _out_of_patience(self) -> bool:
        patience, progress = self.config.optimization.patience, self.progress
        return patience is not None and progress.epoch - (progress.best_epoch or 0) >= patience


def create_model(config: RunConfig, materials: Materials) -> DARec:
    """A fresh model whose initial weights depend on the run's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        dataset = materials.dataset
        return DARec(materials.backbone.model, config.model, dataset.n_users, dataset.n_items)


def to_step_input(batch: Batch, packer: StreamPacker, device: str) -> StepInput:
    """Pack a batch's streams and turn its arrays into tensors on `device`."""

    def tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(array).to(device)

    positives = np.searchsorted(batch.align_items, batch.targets[batch.contrastive_rows])
    return StepInput(
        streams=packer.pack(batch.inputs, batch.lengths, batch.users, batch.align_items).to(device),
        targets=tensor(batch.targets),
        contrastive_rows=tensor(batch.contrastive_rows),
        positives=tensor(positives),
        negatives=tensor(np.searchsorted(batch.align_items, batch.contrastive_negatives)),
        counted=tensor(np.flatnonzero(batch.align_counted)),
        sampled=tensor(batch.sampled),
        cf_users=tensor(batch.cf_users),
        cf_items=tensor(batch.cf_items),
        cf_negatives=tensor(batch.cf_negatives),
        terms=batch.terms,
    )


def autocast(config: RunConfig, device: str) -> torch.autocast | nullcontext[None]:
    """bfloat16 compute where the config asks for it; parameters stay as they are."""
    if config.execution.precision == "bfloat16":
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()
