"""A Ray cluster of processes on this machine: a head, and nodes that can be killed one by one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PATIENCE_S = 900.0
"""Machines that do other work besides take minutes for what takes seconds."""
_RAY = Path(sys.executable).parent / "ray"
_TRIES = 5


def wait_for(what: str, ready: Callable[[], object], every_s: float = 0.3) -> None:
    """Look again and again until it is so.

    Raises:
        TimeoutError: if it is not within a quarter of an hour.
    """
    until = time.monotonic() + PATIENCE_S
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(every_s)


def free_ports(count: int) -> list[int]:
    """Ports outside the range of Ray's own workers (10002 to 19999)."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def kill_tree(process: int) -> None:
    """SIGKILL to a process and everything below it, as when a machine loses its power."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for one in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


class LocalCluster:
    """Head without CPUs and nodes with some, each at a loopback address of its own, guarded by a token.

    Args:
        folder: takes logs.
        environment: of all nodes.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self._folder = folder
        self._token = secrets.token_hex(32)
        self._scratch = Path(tempfile.mkdtemp(prefix="darec-", dir="/tmp"))  # holds sockets, whose paths must be short
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._gcs, self._dashboard, self._client = free_ports(3)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_maximum_startup_concurrency": "16",
            "RAY_worker_niceness": "0",
            **(environment or {}),
        }
        self.address = f"127.0.0.1:{self._gcs}"
        self.dashboard = f"http://127.0.0.1:{self._dashboard}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._nodes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._nodes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
        self._kill_what_is_left()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def start_head(self, nodes: int = 0) -> None:
        """The head, again at the same address if it was there before.

        Args:
            nodes: nodes of one CPU that its autoscaler may add when work waits for them.
        """
        (agent,) = free_ports(1)
        self._start(
            "head", "--head", "--num-cpus=0", "--node-ip-address=127.0.0.1", f"--port={self._gcs}",
            f"--ray-client-server-port={self._client}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._dashboard}", f"--dashboard-agent-listen-port={agent}",
            f"--temp-dir={self._scratch}", *(self._autoscaling(nodes) if nodes else ()),
        )  # fmt: skip

    def _autoscaling(self, nodes: int) -> list[str]:
        """Options for Ray's autoscaler with its provider of nodes that are processes of this machine."""
        self.environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        common = {"node_config": {}, "min_workers": 0}
        config = {
            "cluster_name": "local",
            "max_workers": nodes,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 1,
            "provider": {"type": "fake_multinode", "gcs_address": self.address},
            "available_node_types": {
                "head": {**common, "resources": {"CPU": 0}, "max_workers": 0},
                "cpu": {**common, "resources": {"CPU": 1}, "max_workers": nodes},
            },
            "head_node_type": "head",
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            **{key: [] for key in ("cluster_synced_files", "head_start_ray_commands", "worker_start_ray_commands")},
            **{f"{part}setup_commands": [] for part in ("", "head_", "worker_")},
            "initialization_commands": [],
            "file_mounts_sync_continuously": False,
        }
        file = self._folder / "autoscaling.yaml"
        file.write_text(json.dumps(config), encoding="utf-8")
        return [f"--autoscaling-config={file}"]

    def start_node(self, number: int, cpus: int) -> None:
        """A node; `number` from 2 to 254 is the last part of its address."""
        (agent,) = free_ports(1)
        self._start(
            f"node-{number}", f"--address={self.address}", f"--node-ip-address=127.0.0.{number}", f"--num-cpus={cpus}",
            f"--dashboard-agent-listen-port={agent}",
        )  # fmt: skip

    def kill_node(self, number: int) -> None:
        """The node and all that runs there, at once."""
        self._kill(f"node-{number}")

    def kill_head(self) -> None:
        """The head and all that runs there, at once."""
        self._kill("head")

    def _kill(self, name: str) -> None:
        process = self._nodes.pop(name)
        kill_tree(process.pid)
        process.wait()

    def _start(self, name: str, *options: str) -> None:
        """Ray gives up of itself when a node does not stand within half a minute, as on a busy machine."""
        command = [str(_RAY), "start", "--block", "--object-store-memory=100000000", "--disable-usage-stats", *options]
        log = self._folder / f"{name}.log"
        for _ in range(_TRIES):
            with log.open("w") as file:
                node = subprocess.Popen(command, stdout=file, stderr=file, env=self.environment, cwd=self._folder)
            wait_for(f"the {name}", lambda: "will now block" in log.read_text() or node.poll() is not None)  # noqa: B023
            if node.poll() is None:
                self._nodes[name] = node
                return
        raise RuntimeError(log.read_text())

    def _kill_what_is_left(self) -> None:
        """Told by the token, which only this cluster's processes know."""
        for found in psutil.process_iter():
            with suppress(psutil.Error):
                if found.environ().get("RAY_AUTH_TOKEN") == self._token and found.pid != os.getpid():
                    found.kill()
