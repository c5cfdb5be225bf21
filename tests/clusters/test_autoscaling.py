"""A study on a cluster without a worker: Ray's own autoscaler brings the nodes that its lanes wait for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from local_cluster import PATIENCE_S, LocalCluster
from tiny_studies import study_file

from darec_search.study import Study

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2 * PATIENCE_S)]


def test_lanes_wait_for_the_nodes_that_they_ask_for(tmp_path):
    file = study_file(
        tmp_path,
        search={"trials": 3, "weights": {}},
        promotion={"candidates": 1, "repeats": 1},
        resources={"runner": "ray", "lanes": 2, "autoscaling": True},
        tracking={"enabled": False},
    )
    with LocalCluster(tmp_path, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}) as cluster:
        cluster.start_head(nodes=2)
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        command = [sys.executable, "-m", "darec_search", "run", str(file)]
        ran = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    trials = Study.load(tmp_path / "study").trials()
    assert {trial.status for trial in trials} == {"finished"}
    assert len([trial for trial in trials if trial.spec.stage == "architecture"]) == 3
