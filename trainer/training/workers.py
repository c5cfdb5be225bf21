"""The processes that train one model together: what `torch.distributed` offers, and a single process alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Workers:
    """This process's place among the workers."""

    rank: int
    world: int

    @classmethod
    def current(cls) -> Workers:
        """From the default process group; rank 0 of 1 without one."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls(0, 1)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all workers, in place.

        One flat buffer in one call: adapters and heads are small beside the frozen model, so there is nothing to
        overlap, and a parameter that a worker did not use counts as zero there.
        """
        if self.world == 1:
            return
        trained = list(parameters)
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in trained])
        distributed.all_reduce(flat)
        for parameter, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all workers."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, mine: Tensor) -> Tensor:
        """Undo the split `x[rank::world]`: every worker gets the whole [n] tensor from the shares."""
        if self.world == 1:
            return mine
        shares: list[Tensor] = [torch.empty(0)] * self.world
        distributed.all_gather_object(shares, mine.cpu())
        whole = torch.empty(sum(len(share) for share in shares), dtype=mine.dtype)
        for rank, share in enumerate(shares):
            whole[rank :: self.world] = share
        return whole


def default_device() -> str:
    """CUDA when there is some."""
    return "cuda" if torch.cuda.is_available() else "cpu"
