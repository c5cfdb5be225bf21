from __future__ import annotations

import pytest
import torch
from tiny_runs import tiny_run

from trainer.training.memory import is_out_of_memory, out_of_memory_reason
from trainer.training.run import run
from trainer.training.warm import Warm


def test_a_run_that_asks_for_too_much_says_what_to_change(tmp_path):
    config = tiny_run(tmp_path, model={**tiny_run(tmp_path).model.model_dump(), "collaborative": {"dimension": 10**12}})
    warm = Warm()
    result = run(config, tmp_path / "run", warm=warm, device="cpu")
    assert result.status == "out_of_memory"
    assert "can't allocate memory" in result.reason
    assert "raise execution.accumulation (now 1), set execution.checkpoint_activations" in result.reason
    assert "lower optimization.batch_size (now 16)" in result.reason
    assert result.fingerprint
    # The process is as good as before.
    assert run(tiny_run(tmp_path), tmp_path / "next", warm=warm, device="cpu").status == "finished"


def test_what_is_in_use_already_is_not_advised(tmp_path):
    execution = {"accumulation": 8, "checkpoint_activations": True, "precision": "bfloat16"}
    optimization = {"batch_size": 8}
    config = tiny_run(tmp_path, execution=execution, optimization=optimization, losses={"sampled_items": 10})
    reason = out_of_memory_reason(MemoryError(), config, "cpu", 1_000_000, world=1)
    assert reason == "memory ran out (MemoryError); lower optimization.batch_size (now 8), lower data.max_items (now 8)"
    reason = out_of_memory_reason(MemoryError(), tiny_run(tmp_path), "cpu", 1_000_000, world=2)
    assert "set execution.shard_backbone; or, which changes what is trained, set losses.sampled_items" in reason
    assert "sampled_items" not in out_of_memory_reason(MemoryError(), tiny_run(tmp_path), "cpu", 80, world=2)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected
