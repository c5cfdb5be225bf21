"""The processes that train one model together: what `torch.distributed` offers, and a single process alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from trainer.device import default_device as default_device


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

    def sum_gradients(self, parameters: list[nn.Parameter], figures: Tensor) -> Tensor:
        """Add up the gradients of all workers, in place, and a small vector of theirs.

        One flat buffer in one call: adapters and heads are small beside the frozen model, so there is nothing to
        overlap. A parameter that a worker did not use counts as zero there, also for a worker alone, so that weight
        decay does not depend on the number of workers.

        Args:
            parameters: the trained parameters, in the same order on every worker.
            figures: [n] float32.

        Returns:
            The sum of `figures`.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world == 1:
            return figures
        grads = [torch.as_tensor(parameter.grad) for parameter in parameters]
        flat = torch.cat([*(grad.flatten() for grad in grads), figures])
        distributed.all_reduce(flat)
        *parts, figures = flat.split([*(grad.numel() for grad in grads), len(figures)])
        for parameter, grad, part in zip(parameters, grads, parts, strict=True):
            parameter.grad = part.view_as(grad)
        return figures

    def from_first(self, numbers: Sequence[int], device: str) -> list[int]:
        """Rank 0's numbers, on every worker.

        Args:
            numbers: as many on every worker.
            device: what the workers' group talks about: the device that they train on.
        """
        if self.world == 1:
            return list(numbers)
        sent = torch.tensor(numbers, device=device)
        distributed.broadcast(sent, 0)
        return [int(number) for number in sent.tolist()]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every worker rank 0's values, in place: what each computed by itself may differ in its last digits.

        Args:
            tensors: of the same shapes on every worker, on the device that its group talks about.
        """
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def gather(self, mine: Tensor) -> Tensor:
        """Undo the split `x[rank::world]`: every worker gets the whole [n, …] tensor from the shares."""
        if self.world == 1:
            return mine
        shares: list[Tensor] = [torch.empty(0)] * self.world
        distributed.all_gather_object(shares, mine.cpu())
        whole = torch.empty(sum(map(len, shares)), *mine.shape[1:], dtype=mine.dtype)
        for rank, share in enumerate(shares):
            whole[rank :: self.world] = share
        return whole

    def endings(self, mine: str, wait_s: float) -> list[str] | None:
        """How a run has ended on every worker, in each one's own word, by rank; None if some do not come to its end.

        Told through the group's store, which works when the group does not. Where one worker has given up waiting, all
        who come later get None too. To be called once by each worker for each run, however it ends.

        Args:
            mine: this worker's word.
            wait_s: how long to wait for the others.
        """
        if self.world == 1:
            return [mine]
        store = _store()
        try:
            number = store.add(f"runs/{self.rank}", 1)
            words = [f"run/{number}/{rank}" for rank in range(self.world)]
            parted = f"run/{number}/parted"
            store.set(words[self.rank], mine)
            try:
                store.wait(words, timedelta(seconds=wait_s))
            except RuntimeError:
                store.set(parted, "")
            return None if store.check([parted]) else [store.get(word).decode() for word in words]
        except RuntimeError:  # the store is worker 0's, and may be gone with it
            return None

    def tell(self, number: int, text: str) -> None:
        """Leave the `number`-th message for the other workers, who have read those before; for rank 0."""
        if self.world > 1:
            store = _store()
            store.set(f"told/{number}", text)
            store.delete_key(f"told/{number - 1}")

    def told(self, number: int, wait_s: float) -> str | None:
        """The `number`-th message of rank 0, or None if it does not come in time.

        Unlike a collective, which ends the group after its timeout, this may be waited for as long as one likes.

        Raises:
            RuntimeError: if rank 0 is gone.
        """
        store, key = _store(), f"told/{number}"
        try:
            store.wait([key], timedelta(seconds=wait_s))
        except distributed.DistStoreError:
            return None
        return store.get(key).decode()


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()
