"""The training loop of every model (Section 2.4): steps, checkpoints, and the best one by validation MRR."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.baselines import REFERENCES
from trainer.config import RunConfig
from trainer.ranking import Ranked
from trainer.training.averaging import WeightAverage
from trainer.training.checkpoint import Checkpoints, Progress
from trainer.training.counted import CountedTask
from trainer.training.darec import DARecTask
from trainer.training.darec import create_model as create_model  # part of this door
from trainer.training.divergence import LOSSES, LossWatch, Moment
from trainer.training.evaluation import validation_metrics
from trainer.training.feed import Step, ahead
from trainer.training.feed import to_step_input as to_step_input  # part of this door
from trainer.training.optimizer import apply_step, create_optimizer, set_learning_rate
from trainer.training.precision import autocast
from trainer.training.ranks import save_ranks
from trainer.training.result import Row, write_atomic
from trainer.training.sequence import SequenceTask
from trainer.training.shared import SharedRun
from trainer.training.task import Task
from trainer.training.warm import Judged, Materials
from trainer.training.workers import Workers


class Training:
    """One run in progress.

    Args:
        config: the run.
        materials: what `Warm.materials` has for the run.
        folder: where `checkpoint/` and `curve.jsonl` go.
        device: where to train.
        workers: this process's place among the workers.
        shared: the folder at a URL, if the run has one.
    """

    def __init__(
        self,
        config: RunConfig,
        materials: Judged,
        folder: Path,
        device: str,
        workers: Workers | None = None,
        shared: SharedRun | None = None,
    ) -> None:
        self._shared = shared
        self.config, self.folder, self.device = config, folder, device
        self.workers = workers or Workers.current()
        self.task = create_task(config, materials, device, self.workers)
        self.model = self.task.model
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = create_optimizer(self.model, config.optimization)
        decay = config.optimization.ema_decay
        self.average = WeightAverage(self.trained, decay) if decay is not None else None
        self.checkpoints = Checkpoints(folder / "checkpoint", self.model, self.optimizer, self.average)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.first_step_at: float | None = None
        self.earlier = (0.0, 0.0)
        """Wall and processor seconds of earlier attempts."""
        self._started = (time.monotonic(), time.process_time())

    def run(self) -> Progress:
        """Train to the end.

        Raises:
            Diverged: if a loss or a gradient is not finite, or a loss explodes.
        """
        for _ in self.epochs():
            pass
        return self.progress

    def epochs(self) -> Iterator[Row]:
        """Train epoch by epoch, from the last checkpoint if there is one; whoever iterates no further stops the run.

        Yields:
            The evaluation of each epoch, once checkpoint and curve are written. A run that goes on yields the newest
            one that it has again, since nobody may have heard of it.

        Raises:
            Diverged: if a loss or a gradient is not finite, or a loss explodes.
            StorageError: if the folder at a URL cannot be read.
        """
        if self._shared is not None:
            self._fetch_checkpoint(self._shared)
        restored = self.checkpoints.restore(self.workers, self.device)
        if restored is not None:
            self.progress, self.best = restored
        else:
            self.task.begin()
        self.earlier = (self.progress.wall_s, self.progress.cpu_s)
        self._write_curve()
        if self.progress.curve:
            yield self.progress.curve[-1]
        while not self.over:
            losses = self._train_epoch()
            self._evaluate(losses)
            self._save()
            self._write_curve()
            yield self.progress.curve[-1]

    def _fetch_checkpoint(self, shared: SharedRun) -> None:
        """See that every worker has the newest checkpoint; rank 0 may have a newer one than the URL."""
        if self.workers.rank == 0:
            shared.fetch_checkpoint()
            shared.publish_checkpoint()
        self.workers.from_first([0], self.device)
        if self.workers.rank != 0:
            shared.fetch_checkpoint()

    @property
    def over(self) -> bool:
        """Whether nothing is left to train: all epochs are done, patience is exhausted, or nothing is trained."""
        epochs = self.config.optimization.epochs if self.trained else 1
        return self.progress.epoch >= epochs or self._out_of_patience()

    def _train_epoch(self) -> dict[str, float]:
        """The rest of the epoch under way; the whole epoch's mean losses by name."""
        self.model.train()
        progress, n_steps = self.progress, self.task.steps_per_epoch
        watch = LossWatch(self.task.n_items, progress.first_losses, self.device.startswith("cuda"))
        sums_l = torch.tensor([progress.sums.get(name, 0.0) for name in LOSSES], dtype=torch.float64).to(self.device)
        names = set(progress.sums)
        with ahead(self.task.steps(progress.epoch, progress.epoch_step), self.device) as source:
            for step in source:
                self.first_step_at = self.first_step_at or time.time()
                sums_l += self.step(step, watch)
                names |= {"total", *(name for name, count in vars(step.terms).items() if count)}
                progress.step += 1
                progress.epoch_step += 1
                if self._checkpoint_is_due(n_steps):
                    watch.finish()
                    progress.sums = _by_name(sums_l, names)
                    self._save()
        watch.finish()
        progress.epoch, progress.epoch_step, progress.sums = progress.epoch + 1, 0, {}
        return {f"loss/{name}": value for name, value in _by_name(sums_l / max(n_steps, 1), names).items()}

    def step(self, step: Step, watch: LossWatch) -> Tensor:
        """One optimiser step; the whole batch's losses in the order of `LOSSES`. Nothing in it waits for a GPU."""
        config, progress = self.config.optimization, self.progress
        total_steps = config.epochs * self.task.steps_per_epoch
        rate = set_learning_rate(self.optimizer, config, progress.step, total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        losses_l = torch.zeros(len(LOSSES), device=self.device)
        for part, weight in step.parts:
            losses = self._losses(part)
            (weight * losses["total"]).backward()
            zero = losses_l.new_zeros(())
            losses_l += weight * torch.stack([losses.get(name, zero).detach().float() for name in LOSSES])
        losses_l = self.workers.sum_gradients(self.trained, losses_l)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, config.max_grad_norm)
        moment = Moment(progress.step + 1, progress.epoch + 1, rate)
        apply_step(self.optimizer, skip=watch.look(moment, losses_l, norm))
        if self.average is not None:
            self.average.update(moment.step)
        return losses_l

    def _losses(self, part: Any) -> dict[str, Tensor]:
        with autocast(self.config.execution.precision, self.device):
            return self.task.losses(part)

    def _checkpoint_is_due(self, n_steps: int) -> bool:
        """Whether to save within the epoch; its end saves anyway."""
        every, done = self.config.execution.checkpoint_steps, self.progress.epoch_step
        return every is not None and done % every == 0 and done < n_steps

    def _evaluate(self, losses: dict[str, float]) -> None:
        with self.average.applied() if self.average is not None else nullcontext():
            self._evaluate_weights(losses)

    def _evaluate_weights(self, losses: dict[str, float]) -> None:
        ranked = self.rank()
        metrics = validation_metrics(ranked)
        progress = self.progress
        self._count_time()
        at = {"epoch": progress.epoch, "step": progress.step, "time": time.time(), "seconds": progress.wall_s}
        progress.curve.append({**at, **losses, **metrics})
        if metrics["mrr"] > progress.best_metrics.get("mrr", -1.0):
            progress.best_epoch, progress.best_metrics = progress.epoch, metrics
            if self.workers.rank == 0:
                save_ranks(self.folder, ranked.ranks, metrics["mrr"])
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.trained_state().items()}

    def rank(self) -> Ranked:
        """Ranks of the validation items; leaves the model in evaluation mode."""
        self.model.eval()
        with autocast(self.config.execution.precision, self.device):
            return self.task.rank()

    def _save(self) -> None:
        if self.workers.rank == 0:
            self._count_time()
            self.checkpoints.save(self.progress, self.best)
            if self._shared is not None:
                self._shared.publish_checkpoint()

    def _count_time(self) -> None:
        self.progress.wall_s = self.earlier[0] + time.monotonic() - self._started[0]
        self.progress.cpu_s = self.earlier[1] + time.process_time() - self._started[1]

    def _write_curve(self) -> None:
        if self.workers.rank == 0:
            lines = [json.dumps(row) + "\n" for row in self.progress.curve]
            write_atomic(self.folder / "curve.jsonl", "".join(lines))

    def _out_of_patience(self) -> bool:
        patience, progress = self.config.optimization.patience, self.progress
        return patience is not None and progress.epoch - (progress.best_epoch or 0) >= patience


def create_task(config: RunConfig, materials: Judged, device: str, workers: Workers) -> Task:
    """What the run trains, or counts: a baseline where it names one, else DARec."""
    if isinstance(materials, Materials):
        return DARecTask(config, materials, device, workers)
    if config.baseline is not None and config.baseline.name in REFERENCES:
        return CountedTask(config.baseline.name, materials, exclude_seen=config.data.exclude_seen)
    return SequenceTask(config, materials, device, workers)


def _by_name(losses_l: Tensor, names: set[str]) -> dict[str, float]:
    return {name: value for name, value in zip(LOSSES, losses_l.tolist(), strict=True) if name in names}
