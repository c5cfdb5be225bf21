"""Trainings of a reproduction as Ray tasks: each takes its CPUs and GPUs wherever the cluster has them."""

from __future__ import annotations

from typing import Any

from darec_search.config import StudyConfig
from darec_search.reproduce.chains import Job
from darec_search.reproduce.executors import Done, train
from darec_search.runners.cluster import connect, room_for
from trainer.errors import BadInput
from trainer.threads import of_threads
from trainer.training.attempts import Held
from trainer.training.warm import Warm

_warm: Warm | None = None
"""What a Ray worker process keeps between its tasks."""


def _task(job: Job, held: Held) -> Done:
    global _warm
    _warm = _warm or Warm()
    with of_threads(max(1, int(held.cpus))):
        return train(job, _warm, held)


class RayExecutor:
    """Trains on the Ray cluster that `connect` joins or starts.

    Args:
        config: its `resources` say where, how many at a time and what each takes; every node must see the results
            folder under the same path.
        fill: as many at a time as the cluster has room for now, whatever `resources.lanes` says.

    Raises:
        BadInput: if the cluster does not answer or has no room for a single training.
    """

    def __init__(self, config: StudyConfig, *, fill: bool) -> None:
        connect(config)
        import ray

        resources = config.resources
        self._held = resources.held
        room = room_for(resources.cpus_per_lane, resources.gpus_per_lane)
        if room == 0:
            raise BadInput(
                f"a training takes {self._held.cpus:g} CPUs and {self._held.gpus:g} GPUs, and no node of the Ray "
                "cluster has that; join another by --address, or choose another --scale or --runner local"
            )
        self.slots = room if fill else min(room, resources.lanes)
        self._remote: Any = ray.remote(
            num_cpus=resources.cpus_per_lane, num_gpus=resources.gpus_per_lane, max_retries=resources.attempts - 1
        )(_task)
        self._running: dict[Any, str] = {}

    def start(self, job: Job) -> None:
        """Hand it to Ray."""
        self._running[self._remote.remote(job, self._held)] = job.key

    def wait(self) -> Done:
        """The next that ends.

        Raises:
            ray.exceptions.RayError: if its worker was lost too often, or it raised an error of its own.
        """
        import ray

        (ready, *_), _ = ray.wait(list(self._running), num_returns=1)
        del self._running[ready]
        done: Done = ray.get(ready)
        return done

    def close(self) -> None:
        """End what is under way and leave the cluster."""
        import ray

        for task in self._running:
            ray.cancel(task, force=True)
        ray.shutdown()
