"""The final run: a Ray Train run of its own, with as many workers as asked."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from darec_search.config import StudyConfig
from trainer.config import RunConfig
from trainer.training.result import RunResult

logger = logging.getLogger(__name__)


def run_final(
    study: StudyConfig, config: RunConfig, folder: Path, name: str = "final", url: str | None = None
) -> RunResult:
    """Train one run on `promotion.num_workers` workers, or in this process when the study's runner is `local`.

    The run goes on from its checkpoint when a worker dies, and when it is called again on the same folder. The lanes
    must be closed, so that their resources are free.

    Args:
        study: says where to run: `resources` and `promotion`.
        config: the run.
        folder: takes checkpoint, curve, result and model.
        name: how the workers are called.
        url: of the folder on shared storage, if it is there; only the local runner leaves anything in `folder` then.

    Returns:
        Its result; status `failed` when it lost more workers than `resources.attempts` allows.

    Raises:
        BadInput: if the Ray address does not answer.
    """
    if study.resources.runner == "local":
        from trainer.training.run import run

        return run(config, folder, worker=name, keep_model=True, held=study.resources.held, url=url)
    return _run_on_ray(study, config, folder, name, url)


def _run_on_ray(study: StudyConfig, config: RunConfig, folder: Path, name: str, url: str | None) -> RunResult:
    from darec_search.runners.cluster import connect

    connect(study)
    import ray.train

    from darec_search.runners.train_run import one_line, train_run
    from trainer.worker import run_worker

    promotion = study.promotion
    storage = study.folder.absolute() / "ray" / name
    worker_config = {
        "run": config.model_dump(mode="json"),
        "folder": str(folder.absolute()),
        "url": url,
        "name": name,
        "threads": int(promotion.cpus_per_worker),
        "cpus": promotion.num_workers * promotion.cpus_per_worker,
        "gpus": promotion.num_workers * promotion.gpus_per_worker,
    }
    trainer = train_run(
        run_worker,
        worker_config,
        name=name,
        storage=storage,
        num_workers=promotion.num_workers,
        cpus=promotion.cpus_per_worker,
        gpus=promotion.gpus_per_worker,
        max_failures=study.resources.attempts - 1,
    )
    try:
        return RunResult.model_validate(_in_thread(lambda: trainer.fit().return_value))
    except ray.train.TrainingFailedError as error:
        logger.exception("%s failed", name)
        return RunResult(status="failed", reason=f"lost {study.resources.attempts} workers (last: {one_line(error)})")
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _in_thread(work: Callable[[], Any]) -> Any:
    """Ray Train takes over SIGINT in the main thread and would end the process with exit code 0."""
    outcome: Future[Any] = Future()

    def target() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=target, name="final", daemon=True).start()
    return outcome.result()
