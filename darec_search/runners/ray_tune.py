"""Trials as Ray Tune trials over warm lanes.

A Tune trial is a thin driver without CPUs: it hands its spec to the exchange, forwards the curve to Tune and ends with
the result. Points reach Tune through a searcher that only pops from a queue, because `suggest` stops Tune's whole loop.

`submit` leaves the spec at the exchange too, which takes it once. Tune keeps a single idle actor, so when two lanes end
together one of the next trials would wait 1.5 s (measured) for its driver's process; this way the lane starts at once
and the driver joins it.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.search import Searcher

from darec_search.runners.base import DoneEvent, Event, RowEvent, Runner
from darec_search.runners.cluster import check_final_run, connect, disconnect, room_for_lanes
from darec_search.runners.exchange import Exchange
from darec_search.runners.lanes import Lanes
from darec_search.runners.tune_trial import drive_trial
from darec_search.study import Study
from darec_search.trial import SEARCH_STAGES, TrialSpec
from trainer.architecture import Architecture
from trainer.errors import NoSpace
from trainer.training.result import RunResult, Stop

if TYPE_CHECKING:
    from trainer.worker import Job

_POLL_S = 5.0
_CLOSE_S = 30.0
_KILL_S = 5.0

logger = logging.getLogger(__name__)


class RayTuneRunner(Runner):
    """Ray Tune in a background thread, lanes in others; `submit` and `wait` belong to the controller's thread.

    Raises:
        BadInput: if the Ray address does not answer, or the cluster has no room for a lane or for the final run.
        RuntimeError: from `wait`, if a lane cannot start.
        NoSpace: from `wait`, if a trial finds a disk full.
    """

    def __init__(self, study: Study) -> None:
        resources = study.config.resources
        connect(study.config)
        if resources.autoscaling:
            self.slots = resources.lanes  # each begins when its node is there; an autoscaler adds nodes for what waits
        else:
            self.slots = room_for_lanes(resources)
            check_final_run(study.config.promotion)
        self._study = study
        self._under_way: set[str] = set()
        self._closing = False
        self._points: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        # Inside the study folder, because that is what the nodes of a cluster share, if they share one at all.
        self._scratch = study.folder.absolute() / "ray"
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._exchange: Any = (
            ray.remote(Exchange)
            .options(num_cpus=0, resources=_here())
            .remote(resources.attempts, [f"lane-{number}" for number in range(self.slots)], resources.idle_s)
        )
        self._lanes = Lanes(self._exchange, resources, self._scratch)
        self._tune = threading.Thread(target=self._run_tune, name="tune", daemon=True)
        self._tune.start()

    def submit(self, spec: TrialSpec) -> None:
        """Hand a trial to the lanes and to Tune."""
        if spec.id in self._under_way:
            return
        self._under_way.add(spec.id)
        job: Job = {
            "id": spec.id,
            "config": self._study.run_config(spec).model_dump(mode="json"),
            "folder": str(self._study.trial_folder(spec.id).absolute()),
            "url": self._study.url(f"trials/{spec.id}"),
            "time_limit_s": self._study.config.resources.trial_time_limit_s,
            "keep_model": spec.keeps_model,
            "stoppable": spec.stage in SEARCH_STAGES and self._study.config.search.early_stopping != "none",
            "attempt": 1,
        }
        for lane in ray.get(self._exchange.submit.remote(job)):  # waits, since calls may overtake each other
            self._lanes.start(lane)
        architecture = Architecture(spec.bits).text
        self._points.put(
            {"trial": spec.id, "architecture": architecture, "seed": spec.seed, **spec.weights, "job": job}
        )

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Rows and results from the lanes, without the way through Tune."""
        while self._under_way:
            messages = ray.get(self._exchange.messages.remote(_POLL_S if timeout is None else timeout))
            events = [self._event(message) for message in messages]
            if events or timeout is not None:
                return events
        return []

    def stop(self, trial_id: str, stop: Stop) -> None:
        """Leave word at the exchange, where the trial's worker asks for it at each row."""
        if trial_id in self._under_way:
            ray.get(self._exchange.stop.remote(trial_id, stop))

    def close(self) -> None:
        """End Tune and the lanes; with trials under way, leave Ray altogether, which ends their processes."""
        if not ray.is_initialized():
            return
        self._closing = True
        self._points.put(None)
        busy = ray.get(self._exchange.close.remote())
        # Tune goes first: in a process that has left Ray, its next call would start a new one.
        self._tune.join(_CLOSE_S)
        if busy or not self._lanes.close(_CLOSE_S):
            logger.info("ending lanes with trials under way: %s", ", ".join(busy))
            self._lanes.kill(_KILL_S)
            disconnect()
        else:
            ray.kill(self._exchange)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _event(self, message: Any) -> Event:
        trial, content = message["trial"], message["content"]
        if message["kind"] == "row":
            return RowEvent(trial, content)
        if message["kind"] == "halt":
            raise NoSpace(content["reason"])
        if message["kind"] == "broken":
            raise RuntimeError(f"{content['lane']} cannot start: {content['reason']}")
        self._under_way.discard(trial)
        self._study.fetch(f"trials/{trial}")
        return DoneEvent(trial, RunResult.model_validate(content))

    def _run_tune(self) -> None:
        ahead = self._study.config.search.ahead
        trainable = tune.with_parameters(drive_trial, exchange=self._exchange)
        try:
            tune.Tuner(
                tune.with_resources(trainable, tune.PlacementGroupFactory([_here()])),
                tune_config=tune.TuneConfig(
                    search_alg=_Points(self._points),
                    num_samples=-1,
                    max_concurrent_trials=self.slots + ahead,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.config["trial"],
                ),
                run_config=tune.RunConfig(name="tune", storage_path=str(self._scratch), verbose=0),
            ).fit()
        except Exception:  # the lanes and the study folder do without it
            if not self._closing:
                logger.warning("Ray Tune ended early; the study goes on without its tables", exc_info=True)


class _Points(Searcher):
    """Gives Tune the points that the controller has put into a queue; None in the queue ends the search.

    With trials running it answers at once; without, it blocks, so that an idle Tune neither spins nor sleeps past the
    next point.
    """

    def __init__(self, points: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        super().__init__()
        self._points = points
        self._live: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        try:
            point = self._points.get(block=not self._live)
        except queue.Empty:
            return None
        if point is None:
            return Searcher.FINISHED
        self._live.add(trial_id)
        return point

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher when it starts; a queue cannot be, and is never wanted back."""
        return {**self.__dict__, "_points": None}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the study folder is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a study resumes with a fresh Tuner."""


def _here() -> dict[str, float]:
    """A sliver of the controller's own node: what it needs lives and dies with it, and takes no CPU."""
    return {f"node:{ray.util.get_node_ip_address()}": 0.001}
