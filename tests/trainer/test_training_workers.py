from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run
from torch import distributed, multiprocessing
from torch.distributed.tensor import DTensor

from trainer.config import ExecutionConfig, RunConfig
from trainer.training.loop import Training, create_task
from trainer.training.result import RunResult, Stop
from trainer.training.run import Parted, run
from trainer.training.warm import Judged, Warm
from trainer.training.workers import Workers
from trainer.worker import Job, LaneConfig, run_job


class Killed(BaseException):
    """Stands for the end of all workers in the middle of a run."""


def _kill_at(step: int):
    taken = []

    def count(*_: object) -> None:
        taken.append(1)
        if len(taken) == step:
            raise Killed

    return count


def _killed_and_resumed(config: RunConfig, folder: Path) -> None:
    """End in the second step, of which there are two an epoch, and go on."""
    training = Training(config, Warm().materials(config), folder, "cpu")
    training.optimizer.register_step_post_hook(_kill_at(2))
    with pytest.raises(Killed):
        training.run()
    distributed.barrier()
    assert (folder / "checkpoint" / "epoch-00000-step-0000001").exists()
    distributed.barrier()
    rows = []
    result = run(config, folder, on_row=rows.append, device="cpu")
    assert training.workers.rank or result.curve == rows


def _sharded(config: RunConfig, folder: Path) -> None:
    """Each worker holds half of the layers' weights between steps; another run gets them whole."""
    warm = Warm()
    training = Training(config, warm.materials(config), folder, "cpu")
    layers = [p for layer in training.model.backbone.layers for p in layer.parameters()]
    assert sum(p.to_local().numel() for p in layers) / sum(p.numel() for p in layers) == pytest.approx(0.5, abs=0.02)
    training.run()
    assert all(isinstance(p, DTensor) for layer in training.model.backbone.layers for p in layer.parameters())
    run(config, folder, warm=warm, device="cpu")
    plain = config.model_copy(update={"execution": ExecutionConfig()})
    assert not any(isinstance(p, DTensor) for p in warm.materials(plain).backbone.model.parameters())


def _built_by_the_last_worker(config: RunConfig, workers: Workers) -> None:
    model = config.model.model_dump()
    model["backbone"]["builtin"]["seed"] = 1
    other = RunConfig.model_validate({**config.model_dump(), "model": model})
    for rank in (1, 0):
        if workers.rank == rank:
            assert Warm().materials(other).backbone.model.layers
        distributed.barrier()


def _stopped_by_the_first(config: RunConfig, folder: Path) -> None:
    result = run(config, folder, on_row=lambda row: Stop(reason="enough"), device="cpu")
    assert result.status == "pruned"
    assert len(result.curve) == 1


def _alone_or_together_at_the_end(workers: Workers) -> None:
    if workers.rank == 0:
        assert workers.endings("first", wait_s=0.1) is None
    distributed.barrier()
    if workers.rank == 1:  # too late: the other has given up
        assert workers.endings("second", wait_s=10) is None
    assert workers.endings(f"worker {workers.rank}", wait_s=10) == ["worker 0", "worker 1"]


def _shared_by_the_first(config: RunConfig, workers: Workers) -> None:
    """Workers that fit a prior to different last digits begin with the same one."""
    task = create_task(config, Warm().materials(config), "cpu", workers)
    fitted = task.model.prior.weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "trainer.training.darec.fit_prior", lambda prior, *_: prior.weights.data.fill_(1.0 + workers.rank)
        )
        task.begin()
    assert fitted.tolist() == [1.0] * len(fitted)


def _told_by_the_first(workers: Workers) -> None:
    for number, text in enumerate(["one", "two"]):
        if workers.rank == 0:
            workers.tell(number, text)
        else:
            assert workers.told(number, 10) == text
        distributed.barrier()


class _Failing(Warm):
    """Materials that cannot be had, for a reason for each worker."""

    def __init__(self, *errors: Exception | None) -> None:
        super().__init__()
        self._errors = errors

    def of(self, config: RunConfig) -> Judged:
        error = self._errors[Workers.current().rank]
        if error is not None:
            raise error
        return super().of(config)


def _failed_in_two_ways(config: RunConfig, folder: Path) -> None:
    """Short of memory, one worker lets the other fail; all of them hear why."""
    warm = _Failing(RuntimeError("the other is gone"), torch.OutOfMemoryError("no room"))
    result = run(config, folder, warm=warm, device="cpu")
    assert result.status == "out_of_memory"


def _failed_alone(config: RunConfig, folder: Path, workers: Workers) -> None:
    """A worker that fails alone says so, and so does the one that waits for it; only a lack of memory is a result."""
    lane: LaneConfig = {"exchange": None, "lane": "lane-0", "threads": 1, "cpus": 2.0, "gpus": 0.0}
    job: Job = {
        "id": "parted", "config": config.model_dump(mode="json"), "folder": str(folder), "url": None,
        "time_limit_s": 100.0, "keep_model": False, "stoppable": False, "attempt": 1,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.training.run._ALONE_S", 0.5)
        with pytest.raises(Parted, match=f"worker {workers.rank} ended as {('failed', 'out_of_memory')[workers.rank]}"):
            run_job(lane, job, folder, _Failing(None, torch.OutOfMemoryError("no room")), "lane-0", "cpu")
    if workers.rank == 1:
        os._exit(0)  # without it, the other would wait in a collective


def _worker(rank: int, world: int, folder: str, configs: dict[str, RunConfig]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    own = torch.arange(rank, 7, world)
    assert Workers.current().gather(own).tolist() == list(range(7))
    for name in ("plain", "prior"):
        run(configs[name], Path(folder) / name, device="cpu")
    _killed_and_resumed(configs["parts"], Path(folder) / "parts")
    _sharded(configs["sharded"], Path(folder) / "sharded")
    _stopped_by_the_first(configs["plain"], Path(folder) / "stopped")
    _built_by_the_last_worker(configs["plain"], Workers.current())
    _alone_or_together_at_the_end(Workers.current())
    _told_by_the_first(Workers.current())
    _shared_by_the_first(configs["prior"], Workers.current())
    _failed_in_two_ways(configs["plain"], Path(folder) / "memory")
    _failed_alone(configs["plain"], Path(folder) / "parted", Workers.current())
    # Gloo's threads now and then abort while the interpreter is taken down; what is tested is over by here.
    os._exit(0)


def test_two_workers_train_what_one_trains(tmp_path):
    """Same losses, same metrics, to rounding: also with a last batch of fewer users than workers, with parts and a kill
    within an epoch, with the backbone spread over both, and with a prior from counts."""
    executions = {
        "plain": {},
        "parts": {"accumulation": 2, "checkpoint_steps": 1},
        "sharded": {"accumulation": 2, "shard_backbone": True, "checkpoint_activations": True},
    }
    optimization = {"epochs": 2, "batch_size": 149, "learning_rate": 3e-3}
    configs = {
        name: tiny_run(tmp_path, optimization=optimization, execution=execution)
        for name, execution in executions.items()
    }
    configs["prior"] = tiny_run(tmp_path, optimization=optimization, model={"prior": {"fit_steps": 5}})
    alone = {name: run(configs[name], tmp_path / f"alone-{name}", device="cpu") for name in ("plain", "prior")}
    multiprocessing.spawn(_worker, (2, str(tmp_path), configs), nprocs=2)
    for name in configs:
        together = result_in(tmp_path / name)
        assert together.status == "finished", together.reason
        for one, two in zip(alone.get(name, alone["plain"]).curve, together.curve, strict=True):
            measured = {name: value for name, value in one.items() if name not in ("time", "seconds")}
            assert {name: two[name] for name in measured} == pytest.approx(measured, rel=2e-4)

    stopped = result_in(tmp_path / "stopped")
    assert (stopped.status, stopped.reason) == ("pruned", "enough")
    assert result_in(tmp_path / "memory").status == "out_of_memory"
    parted = result_in(tmp_path / "parted")
    assert (parted.status, parted.curve) == ("out_of_memory", [])


def result_in(folder: Path) -> RunResult:
    return RunResult.model_validate_json((folder / "result.json").read_text())


def test_a_single_process_is_rank_0_of_1():
    assert Workers.current() == Workers(0, 1)
