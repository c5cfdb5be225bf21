"""`ray job submit` on a head, a worker node and MLflow, all processes; stopped in the middle and submitted again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import mlflow
import pytest
import yaml
from local_cluster import PATIENCE_S, LocalCluster, free_ports, wait_for
from tiny_studies import study_file

ROOT = Path(__file__).parents[2]
PLANTED = "pl4nted-s3cret"

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3 * PATIENCE_S)]


@contextmanager
def process(folder: Path, name: str, *command: str) -> Iterator[subprocess.Popen]:
    """A process with a log, told to end at the end."""
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes of it, unused
    with (folder / f"{name}.log").open("w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(timeout=60)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


class Jobs:
    """The APIs of the cluster's dashboard.

    The token is in each request, since a process that has used Ray before keeps its way of authenticating.
    """

    def __init__(self, dashboard: str, token: str, runtime_env: dict) -> None:
        from ray.job_submission import JobSubmissionClient

        self.dashboard = dashboard
        self.headers = {"Authorization": f"Bearer {token}"}
        self.client = JobSubmissionClient(dashboard, headers=self.headers)
        self.runtime_env = runtime_env

    def submit(self, name: str, entrypoint: str, working_dir: Path) -> None:
        environment = {**self.runtime_env, "working_dir": str(working_dir)}
        self.client.submit_job(submission_id=name, entrypoint=entrypoint, runtime_env=environment)

    def logs(self, name: str) -> str:
        return self.client.get_job_logs(name)

    def over(self, name: str) -> bool:
        return self.client.get_job_status(name).is_terminal()

    def end(self, name: str) -> tuple[str, int | None]:
        wait_for(f"the end of {name}", lambda: self.over(name))
        info = self.client.get_job_info(name)
        return info.status.value, info.driver_exit_code

    def actors(self) -> list[str]:
        """Actors alive on the cluster, but for Ray's own: supervisors of jobs, and one that all Train runs share."""
        query = urlencode({"filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE"})
        with urlopen(Request(f"{self.dashboard}/api/v0/actors?{query}", headers=self.headers), timeout=60) as response:
            found = json.load(response)["data"]["result"]["result"]
        rays = ("JobSupervisor", "_AutoscalingCoordinatorActor")
        return [actor["class_name"] for actor in found if actor["class_name"] not in rays]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[tuple[Path, Jobs, str]]:
    folder = tmp_path_factory.mktemp("ray")
    (tracking,) = free_ports(1)
    own = {"PLANTED": PLANTED, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    server = [
        sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={tracking}", "--workers=1",
        f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts",
    ]  # fmt: skip
    with ExitStack() as stack:
        ray = stack.enter_context(LocalCluster(folder, own))
        ray.start_head()
        ray.start_node(2, cpus=2)
        stack.enter_context(process(folder, "mlflow", *server))
        wait_for("MLflow", lambda: answers(f"http://127.0.0.1:{tracking}/health"))
        runtime_env = yaml.safe_load((ROOT / "clusters" / "runtime-env.yaml").read_text())
        yield (
            folder,
            Jobs(ray.dashboard, ray.environment["RAY_AUTH_TOKEN"], runtime_env),
            f"http://me:${{PLANTED}}@127.0.0.1:{tracking}",
        )


def test_a_study_is_submitted_stopped_and_submitted_again(cluster, measured):
    folder, jobs, tracking = cluster
    home = folder / "laptop"
    study = folder / "study"
    study_file(
        home,
        output=str(study),
        cache=str(folder / "cache"),
        data={"path": str(folder / "data")},
        search={"trials": 8, "epochs": 25, "weights": {}},
        optimization={"epochs": 25},
        promotion={"candidates": 1, "repeats": 1, "epochs": 1},
        resources={"runner": "ray", "lanes": 2},
        tracking={"uri": tracking},
    )
    (home / "runs").mkdir()
    (home / "runs" / "heavy.bin").write_bytes(b"x" * 1000)
    (home / "broken.yaml").write_text("name: broken\n")

    # bad input: exit code 2, which Ray keeps, though `ray job submit` itself says 1
    jobs.submit("broken", "test ! -e runs && darec-search run broken.yaml", home)
    jobs.submit("first", "darec-search run study.yaml", home)
    assert jobs.end("broken") == ("FAILED", 2)

    # in the middle of a trial
    wait_for("a result", lambda: list(study.glob("trials/*/result.json")) or jobs.over("first"))
    wait_for("a trial under way", lambda: under_way(study) or jobs.over("first"), every_s=0.05)
    stopping = time.monotonic()
    jobs.client.stop_job("first")
    status, _ = jobs.end("first")
    measured(f"seconds from `ray job stop` to the job's end, with trials under way: {time.monotonic() - stopping:.1f}")
    said = jobs.logs("first")
    assert status == "STOPPED", said
    assert "stopped; nothing finished is lost" in said
    assert "darec-search run" in said
    finished = {file.parent.name: file.stat().st_mtime_ns for file in study.glob("trials/*/result.json")}
    cut = {file.parent.name for file in study.glob("trials/*/spec.json")} - set(finished)
    assert cut
    states = run_states(folder)
    assert "RUNNING" not in states.values(), states
    wait_for("lanes to be gone", lambda: not jobs.actors())

    # one line an event, each with its time; nothing for terminals
    events = [line for line in said.splitlines() if " search: " in line or "validation MRR" in line]
    assert len(events) >= 2
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in events)
    assert "\x1b" not in "\n".join(line for line in said.splitlines() if "(raylet)" not in line)
    assert "\r" not in said

    jobs.submit("second", "darec-search run study.yaml", home)
    assert jobs.end("second") == ("SUCCEEDED", 0), jobs.logs("second")
    after = {file.parent.name: file.stat().st_mtime_ns for file in study.glob("trials/*/result.json")}
    assert finished.items() <= after.items()
    assert cut <= after.keys()
    assert (study / "best" / "architecture.json").exists()
    states = run_states(folder)
    assert set(states.values()) == {"FINISHED"}
    assert len(states) == len(after) + 4  # the study, the final run and two references
    wait_for("lanes to be gone", lambda: not jobs.actors())

    written = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert [file for file in written if PLANTED.encode() in file.read_bytes()] == []
    assert PLANTED not in said + jobs.logs("second")


def under_way(study: Path) -> list[Path]:
    return [file for file in study.glob("trials/*/curve.jsonl") if not (file.parent / "result.json").exists()]


def run_states(folder: Path) -> dict[str, str]:
    """Status in MLflow of every run, by name."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    return {run.info.run_id: run.info.status for run in client.search_runs([experiment.experiment_id])}
