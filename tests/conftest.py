"""What every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A busy machine must not fail a property: how long an example takes is none of them.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"


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
