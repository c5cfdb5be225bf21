"""Lanes of several workers, and lanes that come and go: real trainings on a real Ray."""

from __future__ import annotations

import os
import signal
import time

import pytest
import ray
from real_studies import lane_pids, pid_of, real_study

from darec_search import runners
from darec_search.budget import ledger
from darec_search.runners.base import DoneEvent, RowEvent, Runner
from darec_search.runners.cluster import disconnect
from darec_search.study import Study
from darec_search.trial import Fidelity, TrialSpec, make_spec
from trainer.training.result import Stop
from trainer.training.run import run

PATIENCE_S = 180.0
ENOUGH = Stop(reason="enough")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    yield tmp_path_factory.mktemp("workers")
    disconnect()


def submitted(study: Study, runner: Runner, number: int, epochs: int) -> TrialSpec:
    design = study.space.decode([0] * study.space.bits)
    spec = make_spec(study.id, number, "joint", design, number, Fidelity(users_fraction=1, epochs=epochs))
    study.request(spec)
    runner.submit(spec)
    return spec


def until_done(runner: Runner, spec: TrialSpec, on_row=lambda row: None):
    """The result of a trial; `on_row` sees its evaluations."""
    while True:
        for event in runner.wait():
            if event.trial_id == spec.id and isinstance(event, DoneEvent):
                return event.result
            if event.trial_id == spec.id and isinstance(event, RowEvent):
                on_row(event.row)


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0)


def wait_for_cpus(number: float) -> float:
    """Seconds until so many CPUs are free."""
    began = time.monotonic()
    while free_cpus() < number:
        assert time.monotonic() < began + PATIENCE_S
        time.sleep(0.1)
    return time.monotonic() - began


def test_two_workers_train_each_trial_of_a_lane(folder):
    study = real_study(
        folder, "two", search={"early_stopping": "curve"},
        resources={"lanes": 1, "cpus_per_lane": 2, "workers_per_lane": 2},
    )  # fmt: skip
    killed = []

    def kill_the_other(row):
        if row["epoch"] == 3 and not killed:
            [other] = lane_pids() - {pid_of(alike.worker)}
            killed.append(time.time())
            os.kill(other, signal.SIGKILL)

    def stop_at_two(row):
        if row["epoch"] == 2:
            runner.stop(long.id, ENOUGH)

    with runners.create(study) as runner:
        first = submitted(study, runner, 0, epochs=2)
        alike = until_done(runner, first)
        assert len(lane_pids()) == 2
        long = submitted(study, runner, 1, epochs=500)
        stopped = until_done(runner, long, stop_at_two)
        again = submitted(study, runner, 2, epochs=30)
        resumed = until_done(runner, again, kill_the_other)
        spent = ledger(study)
    # what one worker would have found, to rounding
    alone = run(study.run_config(first), folder / "alone", device="cpu")
    for one, two in zip(alone.curve, alike.curve, strict=True):
        measured = {name: value for name, value in one.items() if name not in ("time", "seconds")}
        assert {name: two[name] for name in measured} == pytest.approx(measured, rel=2e-4)
    # a stop reaches both at the same step, and the lane goes on
    assert (stopped.status, stopped.reason) == ("pruned", "enough")
    assert [row["epoch"] for row in stopped.curve] == [1, 2]
    assert stopped.worker == alike.worker
    # one of two dies: the lane is replaced, the trial goes on from its checkpoint
    assert len(killed) == 1
    assert (resumed.status, resumed.attempts) == ("finished", 2)
    assert pid_of(resumed.worker) != pid_of(alike.worker)
    assert [row["epoch"] for row in resumed.curve] == list(range(1, 31))
    assert resumed.curve[2]["time"] < killed[0] < resumed.curve[-1]["time"]
    assert len(resumed.lost) == 1
    # both workers' CPUs are counted
    wall = sum(result.cost.wall_s for result in (alike, stopped, resumed))
    assert 2 * wall / 3600 <= spent.hours < 2 * (wall + 30) / 3600


def test_idle_lanes_give_back_what_they_hold_and_come_again(folder, measured):
    study = real_study(folder, "idle", search={"early_stopping": "curve"}, resources={"lanes": 2, "idle_s": 1})
    with runners.create(study) as runner:
        assert free_cpus() == 2  # nothing is asked for before there is a trial
        short, long = submitted(study, runner, 0, epochs=1), submitted(study, runner, 1, epochs=100_000)
        until_done(runner, short)
        returned = wait_for_cpus(1)
        another = submitted(study, runner, 2, epochs=1)  # the lane comes again
        assert until_done(runner, another).status == "finished"
        assert study.trial(long.id).result is None
        runner.stop(long.id, ENOUGH)
        assert until_done(runner, long).status == "pruned"
        wait_for_cpus(2)
    idle_s = study.config.resources.idle_s
    measured(f"seconds from a lane's last trial to its CPU being free: {returned:.1f}, of which idle {idle_s:g}")
