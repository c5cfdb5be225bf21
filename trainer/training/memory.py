"""Running out of memory: what counts as it, and what a run can change to need less."""

from __future__ import annotations

import torch

from trainer.config import RunConfig

_MARKS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""In messages of errors that have no class of their own: the CPU allocator, the CUDA driver, cuBLAS."""
_LARGE_CATALOGUE = 10_000


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _MARKS)


def out_of_memory_reason(error: BaseException, config: RunConfig, device: str, n_items: int | None, world: int) -> str:
    """One sentence: what was asked for, the peak on a GPU, and which fields would help that are not in use yet.

    Args:
        error: what was raised.
        config: the run.
        device: where it ran.
        n_items: items of the catalogue, if the dataset was open by then.
        world: number of workers.
    """
    said = " ".join(str(error).split("\n")[0].split())[:200].rstrip(".") or type(error).__name__
    peak = f"; peak {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.startswith("cuda") else ""
    same, other = _same_result(config, world), _other_result(config, n_items)
    advice = f"{', '.join(same)}; or, which changes what is trained, {', '.join(other)}" if same else ", ".join(other)
    return f"memory ran out ({said}{peak}); {advice}"


def _same_result(config: RunConfig, world: int) -> list[str]:
    """What is not in use yet and changes the result by rounding at most."""
    execution, batch_size = config.execution, config.optimization.batch_size
    advice = []
    if execution.accumulation * world < batch_size:
        advice.append(f"raise execution.accumulation (now {execution.accumulation})")
    if not execution.checkpoint_activations:
        advice.append("set execution.checkpoint_activations")
    if execution.precision == "float32":
        advice.append("set execution.precision to bfloat16")
    if world > 1 and not execution.shard_backbone:
        advice.append("set execution.shard_backbone")
    return advice


def _other_result(config: RunConfig, n_items: int | None) -> list[str]:
    advice = []
    if config.losses.sampled_items is None and (n_items is None or n_items > _LARGE_CATALOGUE):
        advice.append("set losses.sampled_items")
    if config.optimization.batch_size > 1:
        advice.append(f"lower optimization.batch_size (now {config.optimization.batch_size})")
    if config.data.max_items > 1:
        advice.append(f"lower data.max_items (now {config.data.max_items})")
    return advice or ["choose a smaller backbone"]
