"""One run from config to `result.json`: never raises for what the run itself did wrong.

`run` trains to the end. `run_by_epochs` is the same run in the hands of the caller, who gets every evaluation, does
what else there is to do, and says whether to go on.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from pydantic import ValidationError

from trainer.config import RunConfig
from trainer.errors import BadInput, NoSpace, no_space_told
from trainer.storage import StorageError
from trainer.training.attempts import Held, attempt, lost
from trainer.training.deterministic import deterministic
from trainer.training.divergence import Diverged
from trainer.training.loop import Training
from trainer.training.memory import is_out_of_memory, out_of_memory_reason
from trainer.training.model_file import save_model
from trainer.training.result import Cost, Row, RunResult, Status, Stop, write_atomic
from trainer.training.shared import SharedRun
from trainer.training.usage import recorded_usage
from trainer.training.warm import Judged, Materials, Warm
from trainer.training.workers import Workers, default_device

_ALIKE_S, _ALONE_S = 60.0, 10.0
"""How long a worker waits for the others at the end of a run; where it failed, they may be waiting for it."""

logger = logging.getLogger(__name__)


class Parted(RuntimeError):  # noqa: N818 - reads as what it is where it is raised
    """Of several workers only this one came to the end of a run; the others wait for it or are gone.

    They can do nothing together any more and have to be started anew. No result is written; the checkpoint stays.

    Args:
        rank: this worker's.
        result: how the run ended for it.
    """

    def __init__(self, rank: int, result: RunResult) -> None:
        super().__init__(f"worker {rank} ended as {result.status} while others went on: {result.reason}")
        self.result = result


def run(
    config: RunConfig,
    folder: Path,
    *,
    on_row: Callable[[Row], Stop | None] | None = None,
    warm: Warm | None = None,
    worker: str | None = None,
    device: str | None = None,
    keep_model: bool = False,
    attempts: int = 1,
    held: Held | None = None,
    url: str | None = None,
) -> RunResult:
    """Train, or go on from `folder/checkpoint`, and write `folder/result.json` before returning.

    Args:
        config: the run.
        folder: its own folder.
        on_row: called with every evaluation, on rank 0; what it returns, if anything, stops the run.
        warm: what this process keeps between runs.
        worker: who runs it, for the record.
        device: `cpu`, `cuda:0`, …; CUDA when there is some, if absent.
        keep_model: leave `model.safetensors` (the best checkpoint's trained tensors) in `folder`.
        attempts: workers that this run has taken, this one included.
        held: what it holds over all its workers; where absent a CPU each, and a GPU if it trains on one.
        url: of its folder on shared storage, where other machines go on with it and find its result.

    Returns:
        The result. Out of memory, divergence and any other error of the run are a status with a reason.

    Raises:
        StorageError: if the URL cannot be used; the run goes on from its checkpoint another time.
        Parted: if it ended for this worker and not for the others.
    """
    running = run_by_epochs(
        config,
        folder,
        warm=warm,
        worker=worker,
        device=device,
        keep_model=keep_model,
        attempts=attempts,
        held=held,
        url=url,
    )
    answer = on_row if Workers.current().rank == 0 else None
    stop: Stop | None = None
    with closing(running):
        while True:
            try:
                row = running.send(stop)
            except StopIteration as ended:
                result: RunResult = ended.value
                return result
            stop = answer(row) if answer else None


def run_by_epochs(
    config: RunConfig,
    folder: Path,
    *,
    warm: Warm | None = None,
    worker: str | None = None,
    device: str | None = None,
    keep_model: bool = False,
    attempts: int = 1,
    held: Held | None = None,
    url: str | None = None,
) -> Generator[Row, Stop | None, RunResult]:
    """A run that halts after every epoch; closed early, it leaves its checkpoint and no result.

    However it ends, `attempts.jsonl` in its folder has how long it took.

    Args:
        config: as for `run`.
        folder: as for `run`.
        warm: as for `run`.
        worker: as for `run`.
        device: as for `run`.
        keep_model: as for `run`.
        attempts: as for `run`.
        held: as for `run`.
        url: as for `run`.

    Yields:
        Every evaluation, as `Training.epochs` does. A `Stop` that is sent back, to rank 0, ends all workers' run here,
        as pruned unless nothing was left to train; its result, as written, is what the generator returns.
    """
    workers = Workers.current()
    device = device or default_device()
    held = held or Held(workers.world, workers.world if device.startswith("cuda") else 0)
    with no_space_told(folder), attempt(folder, worker, held) if workers.rank == 0 else nullcontext():
        return (yield from _by_epochs(config, folder, warm, worker, device, keep_model, attempts, url))


def _by_epochs(
    config: RunConfig,
    folder: Path,
    warm: Warm | None,
    worker: str | None,
    device: str,
    keep_model: bool,
    attempts: int,
    url: str | None,
) -> Generator[Row, Stop | None, RunResult]:
    workers = Workers.current()
    shared = SharedRun(url, folder) if url is not None else None
    started_at, started = time.time(), time.monotonic()
    training: Training | None = None
    status: Status = "finished"
    reason: str | None = None
    stop: Stop | None = None
    materials: Judged | None = None
    try:
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
        sampled = config.system_metrics and workers.rank == 0
        with (
            no_space_told(folder),
            deterministic(config.execution.deterministic),
            recorded_usage(folder, device, sampled),
        ):
            materials = (warm or Warm()).of(config)
            training = Training(config, materials, folder, device, workers, shared)
            for row in training.epochs():
                stop = yield row
                if any(workers.from_first([stop is not None], device)):
                    break
            if not training.over:
                stop = stop or Stop(reason="stopped by the first worker")
                status, reason = "pruned", stop.reason
    except Diverged as error:
        status, reason = "diverged", _sentence(error)
    except (NoSpace, StorageError):  # no fault of the run's
        raise
    except Exception as error:  # a trial's own fault must not take the search with it; the traceback goes to the log
        if is_out_of_memory(error):
            n_items = None if materials is None else materials.dataset.n_items
            status, reason = "out_of_memory", out_of_memory_reason(error, config, device, n_items, workers.world)
        else:
            logger.exception("run %s failed", folder.name)
            status, reason = "failed", _sentence(error)
    agreed = _agreed(workers, status, reason)
    status, reason = agreed or (status, reason)
    result = _result(status, reason, training, started_at, time.monotonic() - started, device)
    if materials is not None:
        result = result.model_copy(update={"fingerprint": materials.dataset.fingerprint})
    if isinstance(materials, Materials):
        backbone = {"backbone": materials.backbone.name, "revision": materials.backbone.revision}
        result = result.model_copy(update=backbone)
    forecast = stop.forecast if stop is not None and status == "pruned" else None
    result = result.model_copy(update={"worker": worker, "attempts": attempts, "forecast": forecast})
    if agreed is None:
        raise Parted(workers.rank, result)
    if workers.rank == 0:
        result = result.model_copy(update={"lost": lost(folder)})
        if keep_model and training is not None and status == "finished":
            with no_space_told(folder):
                save_model(folder / "model.safetensors", training.best)
        write_atomic(folder / "result.json", result.model_dump_json(indent=2))
        if shared is not None:
            result = shared.publish_result(result)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    if status == "out_of_memory":
        training = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return result


def _agreed(workers: Workers, status: Status, reason: str | None) -> tuple[Status, str | None] | None:
    """How a run ended for its workers together, by what stopped the first of them; None if some are not at its end."""
    wait_s = _ALONE_S if status in ("failed", "out_of_memory") else _ALIKE_S
    words = workers.endings(json.dumps([status, reason]), wait_s)
    if words is None:
        return None
    endings: list[tuple[Status, str | None]] = [tuple(json.loads(word)) for word in words]
    # A worker that runs out of memory lets the others fail.
    for worst in ("out_of_memory", "failed"):
        for ending in endings:
            if ending[0] == worst:
                return ending
    return status, reason


def open_folder(config: RunConfig, folder: Path) -> RunResult | None:
    """Claim a folder for a run of its own by `run.json`, so that no run goes on from the checkpoint of another.

    Returns:
        The result of this very run, if it has finished there.

    Raises:
        BadInput: if the folder holds another run or something else, or cannot be written.
    """
    claim = folder / "run.json"
    try:
        if claim.exists():
            if RunConfig.model_validate_json(claim.read_text(encoding="utf-8")) != config:
                raise BadInput(f"{folder}: holds a run of another config; choose another folder or remove it")
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder}: holds something else than a run; choose another folder")
        else:
            write_atomic(claim, config.model_dump_json(indent=2))
        result = RunResult.model_validate_json((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BadInput(f"{folder}: run.json or result.json is damaged; choose another folder or remove it") from error
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    return result if result.status == "finished" else None


def _result(
    status: Status, reason: str | None, training: Training | None, started_at: float, seconds: float, device: str
) -> RunResult:
    # Two clocks: what is spent must be right even if the wall clock is set in between.
    cost = Cost(wall_s=seconds, started_at=started_at, ended_at=time.time())
    if training is None:
        return RunResult(status=status, reason=reason, cost=cost)
    progress = training.progress
    wall_s = training.earlier[0] + cost.wall_s
    cost = cost.model_copy(
        update={
            "wall_s": wall_s,
            "cpu_s": progress.cpu_s,
            "gpu_s": wall_s * training.workers.world if device.startswith("cuda") else 0.0,
            "first_step_at": training.first_step_at,
        }
    )
    return RunResult(
        status=status,
        reason=reason,
        metrics=progress.best_metrics,
        best_epoch=progress.best_epoch,
        curve=progress.curve,
        cost=cost,
    )


def _sentence(error: BaseException) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
