"""Shares of a GPU: Ray counts them, whether the machine has the GPU or not; training falls back to the CPU."""

import os
import secrets
import time

import pytest
import ray
from real_studies import real_study

from darec_search import runners
from darec_search.budget import ledger
from darec_search.controller import search
from darec_search.runners.cluster import disconnect

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture
def one_gpu():
    """A Ray with a single CPU, and a GPU that is only counted."""
    # As the runner does; a process whose Ray has had a token keeps it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(num_cpus=1, num_gpus=1, dashboard_host="127.0.0.1", log_to_driver=False, configure_logging=False)
    yield
    disconnect()


def test_two_lanes_share_a_gpu_and_leave_it_to_the_final_run(one_gpu, tmp_path):
    resources = {"lanes": 3, "cpus_per_lane": 0.5, "gpus_per_lane": 0.5}
    study = real_study(
        tmp_path, "shares", trials=4, epochs=2, resources=resources, promotion={"gpus_per_worker": 1},
        search={"sampler": "random", "strategy": "joint", "trials": 4, "ahead": 2},
    )  # fmt: skip
    with runners.create(study) as runner:
        assert runner.slots == 2
        search(study, runner)
        assert ray.available_resources().get("GPU", 0) == 0
    trials = study.trials()
    assert [trial.status for trial in trials] == ["finished"] * 4
    assert {trial.result.worker.split("/")[0] for trial in trials} == {"lane-0", "lane-1"}
    spent = ledger(study)
    assert spent.unit == "GPU-hours"
    # half a GPU for the time of each trial, and what surrounds it
    taken = sum(trial.result.cost.wall_s for trial in trials) / 2 / 3600
    assert taken <= spent.hours < taken + 4 * 2 / 3600
    patience = time.monotonic() + 20
    while ray.available_resources().get("GPU", 0) < study.config.promotion.gpus_per_worker:
        assert time.monotonic() < patience
        time.sleep(0.1)
