"""A frozen backbone spread over the workers (FSDP2, Zhao et al., VLDB 2023): each holds its share of every layer.

Before a layer computes, the workers put its weights together; afterwards each keeps its share only. So every worker has
to go through the model equally often, also one that has no users in a step or has ranked all of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainer.config import ExecutionConfig
from trainer.models.darec import DARec
from trainer.models.streams import StreamPacker
from trainer.training.workers import Workers

logger = logging.getLogger(__name__)


def is_sharded(execution: ExecutionConfig, workers: Workers) -> bool:
    """Whether a run spreads its backbone; a worker alone has nobody to share with."""
    if execution.shard_backbone and workers.world == 1:
        logger.info("execution.shard_backbone has no effect: one worker holds the whole backbone")
    return execution.shard_backbone and workers.world > 1


def shard_backbone(model: DARec, device: str, workers: Workers) -> None:
    """Spread the layers' weights over the workers, in place; embeddings and last norm stay whole.

    The layers arrive on the device one at a time, so that it never holds them all. The trained tensors are outside the
    layers and stay whole too: they are a few MB, and `Workers.sum_gradients` adds up their gradients.

    Args:
        model: a model on the CPU, whose backbone no other model uses.
        device: where this worker trains.
        workers: all of them take part.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(kind, (workers.world,))
    for layer in model.backbone.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    spread = {id(parameter) for layer in model.backbone.layers for parameter in layer.parameters()}
    # The whole model is FSDP's root, which lets a layer's weights arrive while the one before computes.
    whole = {parameter for parameter in model.parameters() if id(parameter) not in spread}
    fully_shard(model, mesh=mesh, ignored_params=whole)


@dataclass(frozen=True)
class _InStep(Workers):
    """Workers who wait for each other before they gather."""

    wait: Callable[[], None]

    def gather(self, mine: Tensor) -> Tensor:
        self.wait()
        return super().gather(mine)


@contextmanager
def in_step(model: DARec, packer: StreamPacker, workers: Workers, device: str) -> Iterator[Workers]:
    """Let the workers of a sharded model each run as many forward passes as they have to.

    Every pass is announced. A worker that is done, which it shows by gathering, joins the others' passes with a stream
    of one item until nobody announces one.

    Args:
        model: the sharded model.
        packer: packs the stream.
        workers: the workers.
        device: where the model is.

    Yields:
        The workers to gather with.
    """
    waiting = False
    one = np.zeros(1, dtype=np.int64)

    def announced(busy: bool) -> bool:
        count = torch.tensor(float(busy), device=device)
        distributed.all_reduce(count)
        return bool(count.item())

    def announce(*_: Any) -> None:
        if not waiting:
            announced(True)

    @torch.no_grad()
    def wait() -> None:
        nonlocal waiting
        waiting = True
        while announced(False):
            model(packer.pack(one, one + 1, one, one[:0], last_only=True).to(device))
        waiting = False

    hook = model.register_forward_pre_hook(announce)
    try:
        yield _InStep(workers.rank, workers.world, wait)
    finally:
        hook.remove()
