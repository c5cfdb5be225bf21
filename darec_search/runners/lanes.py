"""Lanes: long-lived Ray Train runs whose workers pull trials from the exchange.

A Ray Train run of its own costs 10 s of process starts per trial; a lane pays that once. Ray Train replaces the workers
of a lane when one of them dies; a lane whose whole run ends with an error is started again here. The exchange says when
a lane is to be started, and sends it home when it is idle: its run ends, and what it held is the cluster's again.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from darec_search.config import ResourcesConfig
from darec_search.runners.train_run import one_line, train_run
from darec_search.study import Trial
from trainer.worker import LaneConfig, lane_worker

logger = logging.getLogger(__name__)


class LaneWatch(WorkerGroupCallback):
    """Tells the exchange that a lane has lost a worker, once all of its workers have ended.

    Another lane may go on with the trial then: of several workers, the living ones might still write to its folder.
    """

    def __init__(self, exchange: Any, lane: str) -> None:
        self._exchange = exchange
        self._lane = lane
        self._reason: str | None = None

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Called in the process of Train's controller, every time that it has looked at the workers."""
        if worker_group_status.errors:
            self._reason = "; ".join(one_line(error) for error in worker_group_status.errors.values())

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Called there before the workers are replaced."""
        if self._reason is not None:
            self._exchange.lost.remote(self._lane, self._reason)
            self._reason = None


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
        resources: what each lane holds, and how many workers share it.
        storage: folder for what Ray Train itself writes.
    """

    def __init__(self, exchange: Any, resources: ResourcesConfig, storage: Path) -> None:
        self._exchange = exchange
        self._resources = resources
        self._storage = storage
        self._closing = threading.Event()
        self._starts: Counter[str] = Counter()
        self._threads: dict[str, threading.Thread] = {}

    def start(self, lane: str) -> None:
        """Start a lane, or start it again as soon as its last run has ended."""
        before = self._threads.get(lane)
        self._threads[lane] = threading.Thread(target=self._keep, args=(lane, before), name=lane, daemon=True)
        self._threads[lane].start()

    def close(self, timeout: float) -> bool:
        """Wait until every lane has given its resources back. The exchange must be closed already.

        Returns:
            Whether all did in time.
        """
        self._closing.set()
        for thread in self._threads.values():
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads.values())

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

    def _keep(self, lane: str, before: threading.Thread | None) -> None:
        """Run a lane; start it again when its run ends with an error."""
        if before is not None:
            before.join()
        while not self._closing.is_set():
            try:
                self._trainer(lane).fit()
                return
            except Exception as error:  # whatever Ray raises: the trial goes on, in a new lane
                if self._closing.is_set() or not ray.is_initialized():
                    return
                logger.warning("%s ended and is started again: %s", lane, one_line(error))
                self._exchange.lost.remote(lane, one_line(error))
            self._closing.wait(1.0)

    def _trainer(self, lane: str) -> Any:
        whole, each = self._resources.held, self._resources.each
        config: LaneConfig = {
            "exchange": self._exchange,
            "lane": lane,
            "threads": int(each.cpus),
            "cpus": whole.cpus,
            "gpus": whole.gpus,
        }
        self._starts[lane] += 1
        return train_run(
            lane_worker,
            config,
            name=f"{lane}-{self._starts[lane]}",  # Ray Train would take an old name for a run to go on with
            storage=self._storage,
            num_workers=self._resources.workers_per_lane,
            cpus=each.cpus,
            gpus=each.gpus,
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
