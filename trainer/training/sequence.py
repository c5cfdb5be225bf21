"""Baselines in training: ids in rows side by side.

Batches follow from seed and epoch alone, as DARec's do, and dropout from a number that is drawn with each batch; so a
run goes on bit for bit from a checkpoint within an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.baselines import Catalogue, create_baseline
from trainer.baselines.sequence import Asked, Baseline, Examples, Ints, padded
from trainer.config import RunConfig
from trainer.data.batches import Terms
from trainer.data.ragged import Ragged
from trainer.ranking import Ranked, seen_before
from trainer.training.evaluation import plan_chunks
from trainer.training.feed import Step, to_device
from trainer.training.task import Task
from trainer.training.warm import Judged
from trainer.training.workers import Workers

_IDS_AT_A_TIME = 65_536


@dataclass(frozen=True)
class SequencePart:
    """A worker's part of a step: B rows of T ids, of which R states are read."""

    inputs_bt: Tensor
    lengths_b: Tensor
    places_r: Tensor
    """Places in the flattened [B · T] matrix."""
    targets: Tensor
    """[R]"""
    terms: int
    """States that are read in the whole batch, over all workers and parts."""
    seed: int
    """Of dropout."""


class SequenceTask(Task):
    """See `Task`.

    Args:
        config: the run; its `baseline` is there.
        materials: dataset and validation.
        device: where to train.
        workers: this process's place among the workers.
    """

    model: Baseline

    def __init__(self, config: RunConfig, materials: Judged, device: str, workers: Workers) -> None:
        if config.baseline is None:
            raise ValueError("the run has no baseline")
        dataset = materials.dataset
        self._config, self._materials, self._device, self._workers = config, materials, device, workers
        self.n_items = dataset.n_items
        catalogue = Catalogue.of(dataset, config.cache)
        self.model = create_baseline(config.baseline, catalogue, config.data.max_items, config.seed).to(device)
        # The oldest of so many items has nothing to follow, so it is never predicted.
        newest = dataset.train.newest(config.data.max_items + 1)
        self._histories = newest.take(np.flatnonzero(newest.lengths >= 2))
        self.steps_per_epoch = -(-len(self._histories) // config.optimization.batch_size)

    def begin(self) -> None:
        self.model.begin()

    def steps(self, epoch: int, start: int) -> Iterator[Step]:
        rng = np.random.default_rng([self._config.seed, epoch])
        order = rng.permutation(len(self._histories))
        batches = np.array_split(order, np.arange(1, self.steps_per_epoch) * self._config.optimization.batch_size)
        return islice((self._step(batch, rng) for batch in batches), start, None)

    def losses(self, part: SequencePart) -> dict[str, Tensor]:
        part = to_device(part, self._device)
        devices = [self._device] if self._device.startswith("cuda") else []
        weights = torch.full_like(part.targets, 1 / part.terms, dtype=torch.float32)
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(part.seed)
            loss = self.model.loss(part.inputs_bt, part.lengths_b, part.places_r, part.targets, weights)
        return {"sequence": loss, "total": loss}

    def rank(self) -> Ranked:
        self.model.epoch_ended()
        judged = self._materials.validation
        data = self._config.data
        return rank_histories(
            self.model, judged.histories, judged.targets, self._device, self._workers, max_items=data.max_items,
            exclude_seen=data.exclude_seen, likelihood=True,
        )  # fmt: skip

    def _step(self, users: Ints, rng: np.random.Generator) -> Step:
        """This worker's share of a batch: every `world`-th user, in parts."""
        histories = self._histories.take(users)
        examples, seed = self.model.examples(histories, rng), int(rng.integers(2**62))
        count = self._workers.world * self._config.execution.accumulation
        parts = []
        for part in range(self._config.execution.accumulation):
            share = part * self._workers.world + self._workers.rank
            rows = np.arange(share, len(users), count)
            if len(rows):
                parts.append((_part(examples, rows, seed + share), 1.0))
        return Step(Terms(len(examples.places), 0, 0, 0), parts)


def _part(examples: Examples, rows: Ints, seed: int) -> SequencePart:
    """Some rows of a batch's examples as tensors."""
    inputs = examples.inputs
    row_of_place = inputs.row_of_value[examples.places]
    mine = np.isin(row_of_place, rows)
    matrix, lengths = padded(inputs.take(rows))
    within_row = examples.places[mine] - inputs.offsets[row_of_place[mine]]
    places = np.searchsorted(rows, row_of_place[mine]) * matrix.shape[1] + within_row
    inputs_bt, lengths_b, places_r, targets = map(torch.from_numpy, (matrix, lengths, places, examples.targets[mine]))
    return SequencePart(inputs_bt, lengths_b, places_r, targets, len(examples.places), seed)


def rank_histories(
    model: Baseline,
    histories: Ragged,
    targets: NDArray[np.int32],
    device: str,
    workers: Workers,
    *,
    max_items: int,
    exclude_seen: bool = False,
    likelihood: bool = False,
) -> Ranked:
    """Rank of each user's target among all items, 1 + #higher + ½ #ties; workers share the users.

    Args:
        model: in evaluation mode.
        histories: [users] items before the target, oldest first, at least one each.
        targets: [users] the held-out items.
        device: where the model is.
        workers: who shares the work.
        max_items: newest items of a history that are read.
        exclude_seen: leave out the items of the whole history, but for a target that is among them.
        likelihood: log p(target) is wanted too.

    Returns:
        Ranks of all users, on the CPU; no top lists.
    """
    newest = histories.newest(max_items)
    order, chunks = plan_chunks(newest.lengths + model.extra_positions, _IDS_AT_A_TIME, workers)

    def asked() -> Iterator[Asked]:
        for chunk in chunks:
            matrix, lengths = padded(model.question(newest.take(chunk)))
            inputs_bt, lengths_b = (torch.from_numpy(array).to(device) for array in (matrix, lengths))
            seen = seen_before(histories.take(chunk), targets[chunk]) if exclude_seen else None
            yield Asked(inputs_bt, lengths_b, targets[chunk], seen)

    found = model.rank(asked(), likelihood=likelihood)
    mine = len(order[workers.rank :: workers.world])
    back = torch.from_numpy(np.argsort(order))

    def everyone(part: Tensor) -> Tensor:
        return workers.gather(part[:mine].cpu())[back]

    likelihoods = None if found.log_likelihoods is None else everyone(found.log_likelihoods)
    return Ranked(everyone(found.ranks), everyone(found.top_items), likelihoods)
