"""A study on two Ray nodes, one of which is lost with all that runs there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_cluster import PATIENCE_S, LocalCluster, wait_for
from tiny_studies import study_file

from darec_search.study import Study

ROOT = Path(__file__).parents[2]
EPOCHS = 25

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3 * PATIENCE_S)]


def test_a_study_outlives_one_of_its_nodes(tmp_path, measured):
    file = study_file(
        tmp_path,
        search={"trials": 6, "epochs": EPOCHS, "weights": {}},
        optimization={"epochs": EPOCHS},
        promotion={"candidates": 1, "repeats": 1, "epochs": 1},
        resources={"runner": "ray", "lanes": 2},
        tracking={"enabled": False},
    )
    with LocalCluster(tmp_path, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}) as cluster:
        cluster.start_head()
        for number in (2, 3):
            cluster.start_node(number, cpus=1)
        command = [sys.executable, "-m", "darec_search", "run", str(file)]
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        with (
            (tmp_path / "log").open("w") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path) as running,
        ):
            trials = tmp_path / "study" / "trials"

            def both_at_work() -> bool:
                at_work = [one for one in trials.glob("*/checkpoint") if not (one.parent / "result.json").exists()]
                return running.poll() is not None or (len(at_work) == 2 and bool(list(trials.glob("*/result.json"))))

            wait_for("trials on both nodes", both_at_work, 0.05)
            finished = {one.parent.name: one.stat().st_mtime_ns for one in trials.glob("*/result.json")}
            cluster.kill_node(3)
            lost_at = time.monotonic()
            wait_for("the study", lambda: running.poll() is not None)
        assert running.returncode == 0, (tmp_path / "log").read_text()
    measured(f"seconds from the loss of a node to the end of the study: {time.monotonic() - lost_at:.0f}")
    study = Study.load(tmp_path / "study")
    assert {trial.status for trial in study.trials()} == {"finished"}
    after = {one.parent.name: one.stat().st_mtime_ns for one in trials.glob("*/result.json")}
    assert finished.items() <= after.items()
    searched = [trial.result for trial in study.trials() if trial.spec.stage == "architecture"]
    assert len(searched) == 6
    assert max(result.attempts for result in searched) == 2
    assert all([row["epoch"] for row in result.curve] == list(range(1, EPOCHS + 1)) for result in searched)
