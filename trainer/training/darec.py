"""DARec in training (Section 2.4): packed streams, four losses, the collaborative model beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.config import RunConfig
from trainer.counting import PriorCounter
from trainer.data.batches import BatchPlanner
from trainer.losses import StepInput, darec_losses
from trainer.models.darec import DARec
from trainer.ranking import Ranked
from trainer.training.evaluation import rank_users
from trainer.training.feed import Step, steps, to_device
from trainer.training.pretrain import fit_prior, pretrain_collaborative
from trainer.training.sharding import is_sharded, shard_backbone
from trainer.training.task import Task
from trainer.training.warm import Materials
from trainer.training.workers import Workers

logger = logging.getLogger(__name__)


class DARecTask(Task):
    """See `Task`.

    Args:
        config: the run.
        materials: dataset, backbone, streams and negatives.
        device: where to train.
        workers: this process's place among the workers.
    """

    model: DARec

    def __init__(self, config: RunConfig, materials: Materials, device: str, workers: Workers) -> None:
        self._config, self._materials, self._device, self._workers = config, materials, device, workers
        self.n_items = materials.dataset.n_items
        self.model = create_model(config, materials)
        self.sharded = is_sharded(config.execution, workers)
        if self.sharded:
            shard_backbone(self.model, device, workers)
        elif config.execution.shard_backbone:
            logger.info("execution.shard_backbone has no effect: one worker holds the whole backbone")
        self.model.to(device)
        collaborative = self.model.collaborative
        joint = collaborative is not None and config.model.collaborative.training != "frozen"
        self.planner = BatchPlanner(
            materials.dataset.train,
            materials.dataset.n_items,
            materials.hard_negatives,
            config,
            collaborative.negatives if collaborative is not None and joint else 0,
        )
        self.steps_per_epoch = self.planner.steps_per_epoch
        self._counter: PriorCounter | None = None
        if config.model.prior is not None:
            assert materials.relations is not None
            self._counter = PriorCounter(materials.relations, config.model.prior, materials.dataset.train)

    def begin(self) -> None:
        """Fit the prior, pretrain the collaborative model, where that is wanted."""
        if self.model.prior is not None and self._counter is not None:
            fit_prior(self.model.prior, self._counter, self._materials.dataset.train, self._config, self._device)
            self._workers.share(self.model.prior.parameters())
        if self.model.collaborative is not None and self._config.model.collaborative.training != "joint":
            dataset = self._materials.dataset
            pretrain_collaborative(self.model.collaborative, dataset.train, self._config, self._device)
            self._workers.share(self.model.collaborative.parameters())

    def steps(self, epoch: int, start: int) -> Iterator[Step]:
        return steps(
            self.planner,
            self._materials.packer,
            self._workers,
            epoch=epoch,
            start=start,
            parts=self._config.execution.accumulation,
            pin=self._device.startswith("cuda"),
            stand_in=self.sharded,
            counter=self._counter,
        )

    def losses(self, part: StepInput) -> dict[str, Tensor]:
        return darec_losses(self.model, to_device(part, self._device), self._config.losses)

    def rank(self) -> Ranked:
        judged = self._materials.validation
        return rank_users(
            self.model,
            self._materials.packer,
            judged.histories,
            judged.targets,
            max_items=self._config.data.max_items,
            device=self._device,
            workers=self._workers,
            users=judged.users,
            likelihood=True,
            counter=self._counter,
            exclude_seen=self._config.data.exclude_seen,
        )


def create_model(config: RunConfig, materials: Materials) -> DARec:
    """A fresh model whose initial weights depend on the run's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        dataset = materials.dataset
        interactions = (dataset.train.row_of_value, dataset.train.values)
        sizes = (dataset.n_users, dataset.n_items)
        frequency = None if materials.relations is None else materials.relations.frequency
        return DARec(
            materials.backbone.model,
            config.model,
            *sizes,
            config.execution,
            interactions,
            frequency,
            materials.item_texts,
        )
