"""What runs inside a Ray Train worker: a lane that pulls runs, or one run over a process group.

A lane of several workers is a process group that trains each run together. Rank 0 alone talks to the exchange, and
hands what it is told on to the others through the group's store, where they may wait for days; a stop reaches them at
the end of an epoch (`run`), at the same step. Where a worker dies or fails alone, Ray Train starts the whole lane anew.

The only module of this package that knows Ray. The exchange that a lane talks to is any actor handle with the methods
`take(lane, worker, wait_s)`, `row(run, row)`, which may answer by a `Stop`, `done(run, worker, result)`, and
`halt(reason)`, which ends the study.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch

from trainer.config import RunConfig
from trainer.errors import NoSpace
from trainer.storage import run_folder
from trainer.training.attempts import Held
from trainer.training.result import Row, RunResult, Stop, write_atomic
from trainer.training.run import Parted, run
from trainer.training.shared import SharedRun
from trainer.training.warm import Warm
from trainer.training.workers import Workers

_POLL_S = 30.0
_TOLD_S = 3600.0
_REPORT_S = 10.0

logger = logging.getLogger(__name__)


class Job(TypedDict):
    """One run on its way to a lane; plain values, so that it crosses process borders."""

    id: str
    config: dict[str, Any]
    """A `RunConfig` as JSON values."""
    folder: str
    """Where checkpoint, curve and result.json go; the same path on every node, and of no account with a `url`."""
    url: str | None
    """The folder on shared storage, if it is there: each node works in its scratch, and publishes there."""
    time_limit_s: float
    keep_model: bool
    """Leave the best checkpoint's tensors in the folder."""
    stoppable: bool
    """Wait at each row for a word on whether to go on."""
    attempt: int
    """1 for the first worker that gets the run."""


class LaneConfig(TypedDict):
    """What a lane's workers are told when they start."""

    exchange: Any
    lane: str
    threads: int
    """Of each worker."""
    cpus: float
    """Of the whole lane."""
    gpus: float
    """Of the whole lane."""


def lane_worker(config: LaneConfig) -> None:
    """Pull runs from the exchange until it closes, keeping data, backbone and device context warm in between.

    A run that exceeds its time limit ends this process and leaves every thread's stack in `stacks.txt` of its folder
    (`faulthandler` needs no cooperation from a hanging run). A failed run ends the worker of a GPU too, since an error
    may have left the device context unusable, and several workers, since they may have left off at different places.

    Raises:
        RuntimeError: if the lane has to be started anew.
    """
    _set_threads(config["threads"])
    workers, worker = Workers.current(), _worker_name(config["lane"])
    device = _device(config["gpus"] / workers.world)
    warm = Warm()
    for job in _jobs(config["exchange"], config["lane"], worker, workers):
        folder = run_folder(job["folder"], job["url"], job["config"])
        try:
            result = run_job(config, job, folder, warm, worker, device)
        except NoSpace as error:  # no other trial would fare better, and this one shall go on when there is room
            ray.get(config["exchange"].halt.remote(str(error)))
            return
        if workers.rank == 0:
            _forget(folder, job["url"])
            ray.get(config["exchange"].done.remote(job["id"], worker, result.model_dump(mode="json")))
            _refuse_to_go_on(job["id"], result, workers)


def run_job(config: LaneConfig, job: Job, folder: Path, warm: Warm, worker: str, device: str) -> RunResult:
    """One run of a lane, on all its workers at once.

    Args:
        config: the lane's.
        job: the run.
        folder: where this machine works on it.
        warm: what this worker keeps between runs.
        worker: this worker's name.
        device: where it trains.

    Raises:
        Parted: if this worker came to the end of the run alone. Where it lacked memory, its result stands: the run
            would end so again.
        NoSpace, StorageError: as `run`.
    """
    rank = Workers.current().rank
    stacks = folder / (f"stacks-{rank}.txt" if rank else "stacks.txt")
    try:
        # Rank 0 ends the lane; the others leave word of what they were doing.
        with time_limit(job["time_limit_s"], stacks, exit=rank == 0):
            return run(
                RunConfig.model_validate(job["config"]),
                folder,
                warm=warm,
                on_row=partial(_report, config["exchange"], job["id"]),
                worker=worker,
                device=device,
                keep_model=job["keep_model"],
                attempts=job["attempt"],
                held=Held(config["cpus"], config["gpus"]),
                url=job["url"],
            )
    except Parted as error:
        if error.result.status == "out_of_memory":  # the exchange finds it when the lane is gone
            write_atomic(folder / "result.json", error.result.model_dump_json(indent=2))
            if job["url"] is not None:
                SharedRun(job["url"], folder).publish_result(error.result)
        raise


def _refuse_to_go_on(run_id: str, result: RunResult, workers: Workers) -> None:
    if result.status == "failed" and torch.cuda.is_initialized():
        raise RuntimeError(f"{run_id} failed on a GPU ({result.reason}); the lane goes on in a fresh process")
    if result.status in ("failed", "out_of_memory") and workers.world > 1:
        raise RuntimeError(f"{run_id} ended as {result.status} on several workers; the lane goes on in fresh processes")


def run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One run over all workers of this Ray Train group, which has set up `torch.distributed`.

    Args:
        config: `run` (a `RunConfig` as JSON values), `folder` and `url` as of a `Job`, `name`, `threads`, and of all
            workers `cpus` and `gpus`.

    Returns:
        The `RunResult` as JSON values; Ray Train hands back that of rank 0.

    Raises:
        Parted: if this worker failed alone, say for lack of memory: the others wait for it, so Ray Train has to end
            them.
    """
    _set_threads(config["threads"])
    rank = ray.train.get_context().get_world_rank()
    folder = run_folder(config["folder"], config["url"], config["run"])
    result = run(
        RunConfig.model_validate(config["run"]),
        folder,
        worker=_worker_name(f"{config['name']}-{rank}"),
        device=_device(1.0),
        keep_model=True,
        held=Held(config["cpus"], config["gpus"]),
        url=config["url"],
    )
    # Once only: a report waits for the controller's poll and for every other worker.
    ray.train.report(dict(result.metrics))
    _forget(folder, config["url"])
    return result.model_dump(mode="json")


def _jobs(exchange: Any, lane: str, worker: str, workers: Workers) -> Iterator[Job]:
    """A lane's jobs until the exchange sends it home, the same on each of its workers."""
    if workers.rank != 0:
        yield from _told_jobs(workers)
        return
    for number in itertools.count():
        job = _take(exchange, lane, worker)
        workers.tell(number, json.dumps(job))
        if job is None:
            return
        yield job


def _told_jobs(workers: Workers) -> Iterator[Job]:
    """The jobs that rank 0 hands on."""
    before: Job | None = None
    for number in itertools.count():
        while (text := workers.told(number, _TOLD_S)) is None:
            pass
        if before is not None:  # not sooner: on the same machine, rank 0 publishes from this folder
            _forget(run_folder(before["folder"], before["url"], before["config"]), before["url"])
        before = json.loads(text)
        if before is None:
            return
        yield before


def _take(exchange: Any, lane: str, worker: str) -> Job | None:
    """The next job, or None when the exchange has closed."""
    while True:
        answer = ray.get(exchange.take.remote(lane, worker, _POLL_S))
        if answer["closed"]:
            return None
        if answer["job"]:
            logger.info("%s takes %s", worker, answer["job"]["id"])
            job: Job = answer["job"]
            return job


def _report(exchange: Any, run_id: str, row: Row) -> Stop | None:
    """Send a row and wait for the answer: calls to the exchange may overtake each other. A row is not worth a run."""
    with suppress(ray.exceptions.RayError):
        stop: Stop | None = ray.get(exchange.row.remote(run_id, row), timeout=_REPORT_S)
        return stop
    return None


def _forget(folder: Path, url: str | None) -> None:
    """Remove this node's copy of a run whose result has been published."""
    if url is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _worker_name(lane: str) -> str:
    return f"{lane}/pid-{os.getpid()}@{socket.gethostname()}"


def _set_threads(threads: int) -> None:
    torch.set_num_threads(max(1, threads))


def _device(gpu_share: float) -> str:
    if not torch.cuda.is_available():  # Ray may count GPUs that this machine has not
        return "cpu"
    device = ray.train.torch.get_device()
    if device.type == "cuda" and 0 < gpu_share < 1:
        # Ray's share of a GPU is bookkeeping; this turns a neighbour's excess into an error of its own.
        torch.cuda.set_per_process_memory_fraction(gpu_share, device)
    return str(device)


@contextmanager
def time_limit(seconds: float, stacks: Path, exit: bool = True) -> Iterator[None]:
    """End this process when the block takes longer, whatever it is doing, and leave all threads' stacks in a file.

    The file is gone when the block ends in time. A C thread keeps the time, so a block that holds the GIL ends too.

    Args:
        seconds: the limit.
        stacks: the file.
        exit: end the process; without it, only the file is left.
    """
    stacks.parent.mkdir(parents=True, exist_ok=True)
    with stacks.open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback_later(seconds, exit=exit, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    stacks.unlink(missing_ok=True)
