"""Does anything get lost or paid twice when machines, processes, disks and clocks fail?

python benchmarks/faults.py [--quick] [--record] [--faults NAME ...] [--kills 20] [--seed 0]

Every fault befalls a study of real trainings that runs by `darec-search run`, to its end with promotion and export, and
goes on by the same command wherever it was ended. Processes get SIGKILL; nodes are processes of a Ray cluster on this
machine; the disk is a small file system of its own; a hanging, exploding or memory-hungry training and a wrong clock
are brought in by `fault_injection/sitecustomize.py`.

lost: trials whose result was there and is not any more, and trials of the study that never got one.
repeated: trials whose result was written a second time.
seconds to recover: from the fault, or from the start of the command that goes on, to the next sign of training.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from fault_cases import EPOCHS, Case, Common, Row
from local_cluster import LocalCluster, free_ports, kill_tree, wait_for
from recording import finish
from rich.console import Console
from rich.table import Table

from darec_search.study import Study

QUICK_KILLS = 10
"""Of the controller in one study, with `--quick`."""
STARTUP_S = 12.0
"""A controller is killed within so many seconds of its start, or of its first sign of training."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    console, rows, started = Console(), [], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        kills = min(options.kills, QUICK_KILLS) if options.quick else options.kills
        with ThreadPoolExecutor(2 if options.quick else 1) as pool:
            found = []
            for name in options.faults:
                common = Common(Path(folder), random.Random(f"{options.seed} {name}"), options.quick, kills)
                found.append(pool.submit(FAULTS[name], common, name))
            for name, future in zip(options.faults, found, strict=True):
                with console.status(name):
                    row = future.result()
                rows.append(row)
                console.print(f"{name}: {row.injected} injected, {row.lost} lost, {row.repeated} repeated")
    table = Table("fault", "injected", "lost", "repeated", "seconds to recover", "what was seen")
    for row in rows:
        table.add_row(row.fault, str(row.injected), str(row.lost), str(row.repeated), row.seconds, row.seen)
    console.print(table)
    details = [{**vars(row), "recovery_s": [round(second, 1) for second in row.recovery_s]} for row in rows]
    line = {
        "benchmark": "faults",
        "quick": options.quick,
        "wall_s": round(time.perf_counter() - started),
        "faults": sum(row.injected for row in rows),
        "lost": sum(row.lost for row in rows),
        "repeated": sum(row.repeated for row in rows),
        "rows": details,
    }
    finish(line, options.record)
    if line["lost"] or line["repeated"]:
        sys.exit(1)


def controller_killed(common: Common, fault: str) -> Row:
    """SIGKILL at random moments, most starts in this process's own runner, some on Ray."""
    case = Case(common, fault, search={"trials": 2 * common.kills})
    return _kill_controller(common, case, common.kills, fault)


def controller_killed_on_ray(common: Common, fault: str) -> Row:
    """The same over lanes, whose processes have to go with their controller."""
    case = Case(common, fault, resources=RAY, search={"trials": 16 if common.quick else 2 * common.kills})
    return _kill_controller(common, case, 4 if common.quick else common.kills, fault)


def _kill_controller(common: Common, case: Case, kills: int, fault: str) -> Row:
    """Half of the kills early, when caches, locks and lanes are being set up; half once training goes on."""
    for kill in range(kills):
        since, running = time.time(), case.start()
        if kill % 2:
            case.recovered(running, since)
        until = time.time() + common.chance.uniform(0, STARTUP_S)
        while time.time() < until and running.poll() is None:
            case.look()
            time.sleep(0.05)
        case.injected += running.poll() is None
        running.kill()
        running.wait()
    since, running = time.time(), case.start()
    case.recovered(running, since)
    case.finish(running)
    return case.row(fault, f"{case.results()} trials in {kills + 1} starts")


def worker_killed(common: Common, fault: str) -> Row:
    """SIGKILL of a lane's worker in the middle of a trial."""
    case = Case(common, fault, resources=RAY, search={"trials": 8})
    running, hit = case.start(), set[Path]()
    kills = 3 if common.quick else 10
    while case.injected < kills and running.poll() is None:
        case.look()
        fresh = [trial for trial in case.under_way() if trial not in hit]
        workers = _lane_workers(running.pid)
        if fresh and workers and case.results() < 7:
            common.chance.choice(workers).kill()
            hit.update(case.under_way())
            case.injected += 1
            case.recovered(running, time.time())
        time.sleep(0.1)
    case.finish(running)
    results = [trial.result for trial in Study.load(case.study).trials() if trial.result]
    again = [result for result in results if result.attempts > 1]
    whole = all([row["epoch"] for row in result.curve] == list(range(1, EPOCHS + 1)) for result in again)
    return case.row(fault, f"{len(again)} trials took a second worker, {'whole' if whole else 'BROKEN'} curves")


def node_killed(common: Common, fault: str) -> Row:
    """One of two nodes is lost with all that runs there."""
    with LocalCluster(common.folder) as cluster:
        cluster.start_head()
        for number in (2, 3):
            cluster.start_node(number, cpus=1)
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        case = Case(common, fault, environment, resources=RAY, search={"trials": 8})
        running = case.start()
        wait_for("trials", lambda: (case.results() >= 2 and case.under_way()) or running.poll() is not None, 0.05)
        since = time.time()
        cluster.kill_node(3)
        case.injected = 1
        case.recovered(running, since)
        case.finish(running)
    return case.row(fault, "went on with one node")


def head_killed(common: Common, fault: str) -> Row:
    """The head is lost; the controller ends with a reason; the same command on a new head goes on."""
    with LocalCluster(common.folder, {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}) as cluster:
        cluster.start_head()
        cluster.start_node(2, cpus=2)
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        case = Case(common, fault, environment, resources=RAY, search={"trials": 8})
        running = case.start()
        wait_for("trials", lambda: (case.results() >= 2 and case.under_way()) or running.poll() is not None, 0.05)
        case.look()
        cluster.kill_head()
        case.injected = 1
        wait_for("the controller's end", lambda: running.poll() is not None)
        seen = f"the controller ended by itself, exit code {running.returncode}"
        cluster.kill_node(2)
        cluster.start_head()
        cluster.start_node(2, cpus=2)
        since, running = time.time(), case.start()
        case.recovered(running, since)
        case.finish(running)
    return case.row(fault, seen)


def mlflow_down(common: Common, fault: str) -> Row:
    """No MLflow for the whole study; afterwards all of it is brought there."""
    (port,) = free_ports(1)
    where = f"http://127.0.0.1:{port}"
    case = Case(common, fault, tracking={"enabled": True, "uri": where}, search={"trials": 6})
    case.injected = 1
    case.finish()
    server = [
        sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1",
        f"--backend-store-uri=sqlite:///{case.home}/mlflow.db", f"--artifacts-destination={case.home}/artifacts",
    ]  # fmt: skip
    with (case.home / "mlflow.log").open("w") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes, unused
        process = subprocess.Popen(server, stdout=log, stderr=log, env=environment)
        try:
            sync = [sys.executable, "-m", "darec_search", "sync", str(case.study)]
            wait_for("the sync", lambda: subprocess.run(sync, capture_output=True, check=False).returncode == 0)
        finally:
            kill_tree(process.pid)
            process.wait()
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{case.home}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    synced = [run.data.tags.get("darec.trial") for run in client.search_runs(experiments)]
    trials = {trial.spec.id for trial in Study.load(case.study).trials()}
    row = case.row(fault, f"{len(trials & set(synced))} of {len(trials)} trials synced")
    row.lost += len(trials - set(synced))
    row.repeated += len(synced) - len(set(synced))
    return row


def disk_full(common: Common, fault: str) -> Row:
    """The study folder's file system is full in the middle of the search, and larger later."""
    case = Case(common, fault, search={"trials": 12})
    case.study.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs", str(case.study)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return Row(fault, 0, 0, 0, [], "not injected: only root may mount a small file system")
    try:
        running = case.start()
        wait_for("the disk to be full", lambda: case.look() or running.poll() is not None, 0.05)
        case.injected = 1
        seen = f"exit code {running.returncode} after {case.results()} trials"
        subprocess.run(["mount", "-o", "remount,size=200m", str(case.study)], check=True)
        since, running = time.time(), case.start()
        case.recovered(running, since)
        case.finish(running)
        return case.row(fault, seen)
    finally:
        subprocess.run(["umount", str(case.study)], check=False)


def trial_hangs(common: Common, fault: str) -> Row:
    """A training that never comes back loses its lane's process at its time limit, and the lane goes on."""
    return _injected(common, fault, "hang", "timed_out", resources={**RAY, "trial_time_limit_s": TIME_LIMIT_S})


def trial_explodes(common: Common, fault: str) -> Row:
    """A loss that is no number ends its trial, with the step."""
    return _injected(common, fault, "nan", "diverged", resources=RAY)


def out_of_memory(common: Common, fault: str) -> Row:
    """A training that finds no memory ends its trial, with what to lower."""
    return _injected(common, fault, "oom", "out_of_memory", resources=RAY)


def _injected(common: Common, fault: str, what: str, status: str, resources: dict[str, Any]) -> Row:
    case = Case(common, fault, resources=resources, search={"trials": 6})
    running = case.start()
    wait_for("a result", lambda: case.results() or running.poll() is not None)
    before = len(case.ended_as(status))
    (case.faults / what).touch()
    wait_for("the fault", lambda: list(case.faults.glob(f"{what}-taken-*")) or running.poll() is not None, 0.05)
    case.injected = 1
    since = time.time()
    wait_for("its record", lambda: len(case.ended_as(status)) > before or running.poll() is not None, 0.05)
    case.recovery_s.append(time.time() - since)
    case.finish(running)
    trial = case.ended_as(status)[0]
    assert trial.result is not None
    what_it_was, *_ = re.split(r"[;(]", str(trial.result.reason))
    return case.row(fault, f"recorded: {what_it_was.strip()}")


def files_damaged(common: Common, fault: str) -> Row:
    """After a kill: a checkpoint cut in half, a flipped bit in one, a result and a spec half written."""
    case = Case(common, fault, search={"trials": 12}, optimization={"epochs": 2 * EPOCHS})
    for damage in (_cut_in_half, _flip_a_bit, _half_a_result, _half_a_spec):
        running = case.start()
        before = case.results()
        wait_for("a trial", lambda: (case.under_way() and case.results() > before) or running.poll() is not None, 0.02)  # noqa: B023
        running.kill()
        running.wait()
        case.look()
        damage(case.under_way()[0])
        case.injected += 1
    since, running = time.time(), case.start()
    case.recovered(running, since)
    case.finish(running)
    return case.row(fault, "computed again, never trusted")


def _cut_in_half(trial: Path) -> None:
    file = max(trial.glob("checkpoint/*/optimizer.safetensors"))
    os.truncate(file, file.stat().st_size // 2)


def _flip_a_bit(trial: Path) -> None:
    file = max(trial.glob("checkpoint/*/model.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _half_a_result(trial: Path) -> None:
    (trial / "result.json").write_text('{"status": "finished", "metrics": {"mrr": 0.')


def _half_a_spec(trial: Path) -> None:
    (trial / ".spec.json.0123").write_text('{"number": 1')


def clock_jumps(common: Common, fault: str) -> Row:
    """The wall clock is a day ahead, then an hour behind, in the middle of trials."""
    case = Case(common, fault, search={"trials": 8})
    running = case.start()
    for offset in (86_400, -3_600, 0):
        before = case.results()
        wait_for("trials", lambda: case.results() > before or running.poll() is not None, 0.05)  # noqa: B023
        (case.faults / "clock").write_text(str(offset))
        case.injected += 1
        case.recovered(running, time.time())
    case.finish(running)
    results = [trial.result for trial in Study.load(case.study).trials() if trial.result]
    seconds = [result.cost.wall_s for result in results]
    return case.row(fault, f"trials took {min(seconds):.1f} to {max(seconds):.1f} s by their own account")


TIME_LIMIT_S = 30
"""Of a trial that hangs; many times what a trial takes, so that no other reaches it on a busy machine."""
DISK_KB = 600
"""Room for a few trials."""
RAY = {"runner": "ray", "lanes": 2}
FAULTS: dict[str, Callable[[Common, str], Row]] = {
    "controller killed": controller_killed,
    "controller killed on Ray": controller_killed_on_ray,
    "worker killed": worker_killed,
    "node killed": node_killed,
    "head killed": head_killed,
    "MLflow down": mlflow_down,
    "disk full": disk_full,
    "trial hangs": trial_hangs,
    "loss not a number": trial_explodes,
    "out of memory": out_of_memory,
    "files damaged": files_damaged,
    "clock jumps": clock_jumps,
}


def _lane_workers(controller: int) -> list[psutil.Process]:
    """Living processes of Ray Train workers below a controller that has a Ray of its own."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(controller).children(recursive=True)
        return [child for child in children if any("RayTrainWorker" in part for part in child.cmdline())]
    return []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer kills, and two faults at a time")
    parser.add_argument("--record", action="store_true", help="append the result to results/faults.jsonl")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS), help="which ones")
    parser.add_argument("--kills", type=int, default=20, help="of the controller in one study")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    return parser


if __name__ == "__main__":
    main()
