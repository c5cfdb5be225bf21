from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run
from torch import distributed, multiprocessing

from trainer.config import RunConfig
from trainer.training.result import RunResult
from trainer.training.run import run
from trainer.training.warm import Warm
from trainer.training.workers import Workers


def _worker(rank: int, world: int, folder: str, config: RunConfig) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    own = torch.arange(rank, 7, world)
    assert Workers.current().gather(own).tolist() == list(range(7))
    run(config, Path(folder) / "run", device="cpu")
    distributed.barrier()
    # Gloo's threads now and then abort while the interpreter is taken down; what is tested is over by here.
    os._exit(0)


def test_two_workers_train_what_one_trains(tmp_path):
    """Same batches, same losses, same metrics, to rounding; also with a last batch of fewer users than workers."""
    config = tiny_run(tmp_path, optimization={"epochs": 2, "batch_size": 149, "learning_rate": 3e-3})
    alone = run(config, tmp_path / "alone", warm=Warm(), device="cpu")
    multiprocessing.spawn(_worker, (2, str(tmp_path), config), nprocs=2)
    together = RunResult.model_validate_json((tmp_path / "run" / "result.json").read_text())
    assert together.status == "finished", together.reason
    for one, two in zip(alone.curve, together.curve, strict=True):
        measured = {name: value for name, value in one.items() if name not in ("time", "seconds")}
        assert {name: two[name] for name in measured} == pytest.approx(measured, rel=2e-4)


def test_a_single_process_is_rank_0_of_1():
    assert Workers.current() == Workers(0, 1)
