"""What every test may use."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A busy machine must not fail a property: how long an example takes is none of them.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Ray would have its workers come last, after the other processes that run tests.
os.environ.setdefault("RAY_worker_niceness", "0")

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than CPUs: tests with processes of their own, such as Ray's, wait much of their time."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none is left over when all others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Threads that wait for each other over tiny tensors cost minutes on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real datasets; tests that use it carry the marker `realdata`."""
    folder = Path(os.environ.get("DAREC_SEARCH_DATA", _BESIDE_THE_REPOSITORY))
    if not folder.is_dir():
        pytest.skip(f"no real datasets in {folder}; set DAREC_SEARCH_DATA to their folder")
    return folder


MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture
def measured(request) -> Callable[[str], None]:
    """Takes a line with a figure; the test run's log ends with all of them."""
    return request.config.stash.setdefault(MEASURED, []).append


def pytest_sessionfinish(session) -> None:
    """One of several processes that run the tests hands its figures over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["measured"] = session.config.stash.get(MEASURED, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """The process that waits for them takes them."""
    node.config.stash.setdefault(MEASURED, []).extend(getattr(node, "workeroutput", {}).get("measured", []))


def pytest_terminal_summary(terminalreporter, config) -> None:
    lines = config.stash.get(MEASURED, [])
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def s3_server():
    """Address of an S3-compatible server of the tests' own."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch, tmp_path) -> str:
    """URL of an empty bucket, with credentials in the environment, on a machine that has seen nothing yet."""
    import fsspec

    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "AKIA-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests-7f3a",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    move_to_another_machine(monkeypatch, tmp_path / "machine")
    url = f"s3://bucket-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(url)
    return url


def move_to_another_machine(monkeypatch, folder: Path) -> None:
    """Let what is copied from URLs go to another folder for temporary files, as on another machine."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))


@pytest.fixture
def another_machine(monkeypatch, tmp_path) -> Callable[[], Path]:
    """Moves this test to a machine that has seen nothing yet; returns its folder for temporary files."""

    def move() -> Path:
        folder = tmp_path / f"machine-{uuid.uuid4().hex[:8]}"
        move_to_another_machine(monkeypatch, folder)
        return folder

    return move
