"""A frozen backbone spread over the workers (FSDP2, Zhao et al., VLDB 2023): each holds its share of every layer.

Before a layer computes, the workers put its weights together; afterwards each keeps its share only. So every worker has
to go through the model equally often: `feed.steps` lets others stand in for a part without users, and the evaluation
gives every worker as many chunks.
"""

from __future__ import annotations

import torch

from trainer.config import ExecutionConfig
from trainer.models.darec import DARec
from trainer.training.workers import Workers


def is_sharded(execution: ExecutionConfig, workers: Workers) -> bool:
    """Whether a run spreads its backbone; a worker alone has nobody to share with."""
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
    from torch.distributed.device_mesh import init_device_mesh  # slow to import, and few runs shard
    from torch.distributed.fsdp import fully_shard

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
