"""Real training through the runners: Ray Tune over Ray Train lanes, the final run, and killed processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import ray
import real_studies
from real_studies import pid_of, real_study

from darec_search import runners
from darec_search.budget import final_hours
from darec_search.config import PromotionConfig, ResourcesConfig
from darec_search.controller import search
from darec_search.runners.base import DoneEvent, RowEvent
from darec_search.runners.cluster import check_cluster, check_final_run, connect, disconnect, room_for_lanes
from darec_search.runners.final import run_final
from darec_search.runners.lanes import lane_gaps
from darec_search.study import Study
from darec_search.trial import Fidelity, make_spec
from trainer.config import ExecutionConfig
from trainer.errors import BadInput
from trainer.training.result import Forecast, Stop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data and cache of this file's studies; the Ray that the first of them starts serves all."""
    yield tmp_path_factory.mktemp("real")
    disconnect()


def test_trials_run_on_warm_lanes_and_survive_a_killed_worker(folder, measured):
    study = real_study(folder, "lanes", trials=8, epochs=3)
    rows, killed = Counter(), []

    def kill_a_worker_once(event):
        rows.update([event.trial_id] * isinstance(event, RowEvent))
        done = sum(trial.result is not None for trial in study.trials())
        if not killed and done >= 4 and isinstance(event, RowEvent) and event.row["epoch"] == 1:
            # The worker of this very trial: the other one may be between two trials.
            attempts = (study.trial_folder(event.trial_id) / "attempts.jsonl").read_text()
            killed.append(pid_of(json.loads(attempts.splitlines()[0])["worker"]))
            os.kill(killed[0], signal.SIGKILL)

    with runners.create(study) as runner:
        assert runner.slots == 2
        search(study, runner, kill_a_worker_once)
        trials = study.trials()
        assert {trial.status for trial in trials} == {"finished"}
        assert len(trials) == 8
        assert all(rows[trial.spec.id] >= 3 for trial in trials)
        assert killed
        assert sorted(trial.result.attempts for trial in trials) == [1] * 7 + [2]
        again = next(trial.result for trial in trials if trial.result.attempts == 2)
        assert pid_of(again.worker) != killed[0]
        assert [row["epoch"] for row in again.curve] == [1, 2, 3]  # it went on from its checkpoint
        assert len(again.lost) == 1
    gaps = lane_gaps(trials)
    figures = " ".join(f"{gap:.3f}" for gap in gaps)
    measured(f"seconds from one trial's end to the next one's first step on a warm lane: {figures}")
    assert len(gaps) >= 3
    assert sorted(gaps)[len(gaps) // 2] < 1.0


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [2, 1])
def test_a_trial_beyond_its_time_limit_is_recorded_and_the_lane_goes_on(folder, workers):
    lane = {"lanes": 1, "cpus_per_lane": workers, "workers_per_lane": workers}
    study = real_study(folder, f"limit-{workers}", resources={**lane, "trial_time_limit_s": 16})
    design = study.space.decode([0] * study.space.bits)
    short, endless = (
        make_spec(study.id, number, "joint", design, 0, Fidelity(users_fraction=1, epochs=epochs))
        for number, epochs in enumerate([1, 100_000])
    )
    ended = []
    with runners.create(study) as runner:
        for spec in (endless, short):
            study.request(spec)
            runner.submit(spec)
        while len(ended) < 2:
            ended += [event.result for event in runner.wait() if isinstance(event, DoneEvent)]
    assert [result.status for result in ended] == ["timed_out", "finished"]
    for file in ("stacks.txt", "stacks-1.txt")[:workers]:
        assert "most recent call first" in (study.trial_folder(endless.id) / file).read_text()
    assert study.trial(endless.id).status == "timed_out"
    assert not list(study.trial_folder(short.id).glob("stacks*"))


@pytest.mark.cluster
def test_a_stopped_trial_gives_its_lane_to_the_next(folder):
    study = real_study(folder, "stopped", search={"early_stopping": "curve"}, resources={"lanes": 1})
    design = study.space.decode([0] * study.space.bits)
    long, short = (
        make_spec(study.id, number, "joint", design, 0, Fidelity(users_fraction=1, epochs=epochs))
        for number, epochs in enumerate([500, 1])
    )
    stop = Stop(
        reason="stopped after epoch 2 of 500: hopeless", forecast=Forecast(metric="mrr", value=0.02, stderr=0.004)
    )
    ended = []
    with runners.create(study) as runner:
        for spec in (long, short):
            study.request(spec)
            runner.submit(spec)
        while len(ended) < 2:
            for event in runner.wait():
                if isinstance(event, DoneEvent):
                    ended.append(event)
                elif event.trial_id == long.id and event.row["epoch"] == 2:
                    runner.stop(long.id, stop)
    assert [(event.trial_id, event.result.status) for event in ended] == [(long.id, "pruned"), (short.id, "finished")]
    result = study.trial(long.id).result
    assert (result.reason, result.forecast) == (stop.reason, stop.forecast)
    assert [row["epoch"] for row in result.curve] == [1, 2]
    assert ended[1].result.worker == result.worker
    assert not (study.trial_folder(long.id) / "checkpoint").exists()


def test_a_running_cluster_is_joined_and_its_room_respected(folder, caplog):
    connect(real_study(folder, "joined").config)
    assert room_for_lanes(ResourcesConfig(lanes=5)) == 2
    assert "room for 2 of 5 lanes" in caplog.text
    with pytest.raises(BadInput, match="a lane needs 1 CPUs and 1 GPUs"):
        room_for_lanes(ResourcesConfig(gpus_per_lane=1))
    with pytest.raises(BadInput, match="room for 2"):
        check_final_run(PromotionConfig(num_workers=3))
    script = (
        "import sys, ray\n"
        "from darec_search.config import StudyConfig\n"
        "from darec_search.runners.cluster import connect\n"
        "resources = {'address': sys.argv[1]}\n"
        "connect(StudyConfig.model_validate({'name': 'x', 'data': {'path': 'x'}, 'resources': resources}))\n"
        "print(ray.get_runtime_context().gcs_address)\n"
    )
    address = ray.get_runtime_context().gcs_address
    check_cluster(real_study(folder, "fits", resources={"address": address}).config)
    with pytest.raises(BadInput, match="a lane needs 3 workers, each 1 CPUs"):
        check_cluster(
            real_study(
                folder, "too_wide", resources={"address": address, "cpus_per_lane": 3, "workers_per_lane": 3}
            ).config
        )
    other = subprocess.run(
        [sys.executable, "-c", script, address], capture_output=True, text=True, timeout=60, check=False
    )
    assert other.stdout.split() == [address], other.stderr


@pytest.mark.cluster
def test_the_final_run_takes_two_workers_that_share_the_backbone(folder):
    study = real_study(folder, "final", promotion={"num_workers": 2})
    config = study.config.run_config("SPS-PPS", {}, 0, users_fraction=1.0, epochs=2)
    config = config.model_copy(update={"execution": ExecutionConfig(shard_backbone=True)})
    result = run_final(study.config, config, study.folder / "final")
    assert result.status == "finished", result.reason
    assert len(result.curve) == 2
    assert (study.folder / "final" / "model.safetensors").exists()
    assert (study.folder / "final" / "result.json").exists()
    # two CPUs for the time of the run, and what surrounds it
    assert 2 * result.cost.wall_s / 3600 <= final_hours(study) < 2 * (result.cost.wall_s + 10) / 3600


@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=pytest.mark.cluster)])
def test_a_killed_controller_resumes_without_loss_or_repetition(tmp_path, kind):
    real_study(tmp_path, "study")  # data and backbone, so that the first start is at its trials soon
    command = [sys.executable, real_studies.__file__, str(tmp_path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        done = 0
        for line in first.stdout:
            done += line.startswith("DoneEvent")
            if done == 2 and line.startswith("RowEvent"):  # in the middle of a trial
                break
        first.kill()
    finished = results(tmp_path / "study")
    assert len(finished) >= 2
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    ended = [line.split()[1] for line in second.stdout.splitlines() if line.startswith("DoneEvent")]
    assert not set(ended) & set(finished)
    trials = Study.load(tmp_path / "study").trials()
    assert len(trials) == 4
    assert {trial.status for trial in trials} == {"finished"}
    assert finished.items() <= results(tmp_path / "study").items()
    # one at a time, each proposal knew the results before it, whoever was killed between
    assert [trial.spec.told for trial in trials] == [(), *((trial.spec.id,) for trial in trials[:-1])]


def results(folder: Path) -> dict[str, int]:
    """When each result was written, by trial."""
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("trials/*/result.json")}
