"""Lanes: long-lived Ray Train runs whose workers pull trials from the exchange.

A Ray Train run of its own costs 10 s of process starts per trial; a lane pays that once. Ray Train replaces a worker
that dies; a lane whose whole run ends with an error is started again here.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.execution.callback import ControllerCallback

from darec_search.runners.train_run import one_line, train_run
from darec_search.study import Trial
from trainer.worker import LaneConfig, lane_worker

logger = logging.getLogger(__name__)


class LaneWatch(ray.train.UserCallback):
    """Tells the exchange about a dead worker as soon as Ray Train's controller sees it."""

    def __init__(self, exchange: Any, lane: str) -> None:
        self._exchange = exchange
        self._lane = lane

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the process of Train's controller, before the worker is replaced."""
        reason = "; ".join(one_line(error) for error in worker_exceptions.values())
        self._exchange.lost.remote(self._lane, reason)


class LaneHandle(ControllerCallback):
    """Leaves the handle of a lane's controller at the exchange: Ray Train's `fit` hands it to nobody."""

    def __init__(self, exchange: Any, lane: str) -> None:
        self._exchange = exchange
        self._lane = lane

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the process of Train's controller."""
        self._exchange.started.remote(self._lane, ray.get_runtime_context().current_actor)


class Lanes:
    """A set of lanes, each in a thread that waits for its Ray Train run.

    Args:
        exchange: actor handle of the `Exchange`.
        count: number of lanes.
        cpus, gpus: of each.
        storage: folder for what Ray Train itself writes.
    """

    def __init__(self, exchange: Any, count: int, cpus: float, gpus: float, storage: Path) -> None:
        self._exchange = exchange
        self._cpus, self._gpus = cpus, gpus
        self._storage = storage
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, args=(f"lane-{index}",), name=f"lane-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def close(self, timeout: float) -> bool:
        """Wait until every lane has given its resources back. The exchange must be closed already.

        Returns:
            Whether all did in time.
        """
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads)

    def kill(self, timeout: float) -> bool:
        """End every lane with whatever it is at; its trial goes on from the checkpoint another time.

        Ray may be left only after this: a thread that still waits for it then ends the process, with a wrong exit code.

        Returns:
            Whether all had ended in time.
        """
        self._closing.set()
        controllers = ray.get(self._exchange.controllers.remote())
        if controllers:
            # Aborted, a controller takes its helpers along, which live on without their job otherwise.
            aborts = [controller.abort.remote() for controller in controllers]
            ray.wait(aborts, num_returns=len(aborts), timeout=timeout)
        for controller in controllers:
            ray.kill(controller)
        return self.close(timeout)

    def _keep(self, lane: str) -> None:
        """Run a lane; start it again when its run ends with an error."""
        for start in itertools.count():
            try:
                self._trainer(lane, start).fit()
                return
            except Exception as error:  # whatever Ray raises: the trial goes on, in a new lane
                if self._closing.is_set() or not ray.is_initialized():
                    return
                logger.warning("%s ended and is started again: %s", lane, one_line(error))
                self._exchange.lost.remote(lane, one_line(error))
            if self._closing.wait(1.0):
                return

    def _trainer(self, lane: str, start: int) -> Any:
        config: LaneConfig = {
            "exchange": self._exchange,
            "lane": lane,
            "threads": int(self._cpus),
            "cpus": self._cpus,
            "gpu_share": self._gpus,
        }
        return train_run(
            lane_worker,
            config,
            name=f"{lane}-{start}",
            storage=self._storage,
            num_workers=1,
            cpus=self._cpus,
            gpus=self._gpus,
            max_failures=-1,
            callbacks=[LaneWatch(self._exchange, lane), LaneHandle(self._exchange, lane)],
        )


def lane_gaps(trials: Iterable[Trial]) -> list[float]:
    """Seconds from one trial's end to the next one's first step on the same warm worker, while a trial was wanted.

    A trial cannot be wanted before the last trial of the stage before it has ended: where a worker waited for that, its
    gap begins there. The first trial of a worker and a trial that lost a worker have no gap.
    """
    ran = [(trial, trial.result) for trial in trials if trial.result and trial.result.worker]
    by_worker = defaultdict(list)
    for trial, result in sorted(ran, key=lambda pair: pair[1].cost.started_at):
        by_worker[result.worker].append((trial, result))
    gaps = []
    for history in by_worker.values():
        for (_, before), (trial, result) in itertools.pairwise(history):
            if result.cost.first_step_at is None or result.attempts > 1:
                continue
            others = [
                other.cost.ended_at
                for peer, other in ran
                if peer.spec.stage != trial.spec.stage and other.cost.ended_at <= result.cost.started_at
            ]
            gaps.append(result.cost.first_step_at - max([before.cost.ended_at, *others]))
    return gaps
