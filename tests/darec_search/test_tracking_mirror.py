"""The background thread that keeps a tracker up to date and never holds up or fails a search."""

import logging
import socket
import threading
import time
from collections.abc import Callable

import pytest
from study_folders import ask, fail, finish, new_study

from darec_search.study import Study
from darec_search.tracking import TRACKERS
from darec_search.tracking.base import Synced, Tracker
from darec_search.tracking.mirror import Mirror


class Recorder:
    """A tracker that remembers what it was asked, and is down while `down` is set."""

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.down = threading.Event()
        self.hangs = threading.Event()

    def sync(self, live: bool = False) -> Synced:
        self.calls.append(live)
        if self.hangs.is_set():
            time.sleep(30)
        if self.down.is_set():
            raise ConnectionError("no answer from http://ann:hunter2@example.org")
        return Synced(runs=1, created=0, updated=0, location="here")


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def study(tmp_path) -> Study:
    return new_study(tmp_path / "study")


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    tracker = Recorder()

    def make(study: Study, uri: str | None) -> Tracker:
        return tracker

    monkeypatch.setitem(TRACKERS, "recorder", make)
    return tracker


def test_events_are_taken_together_and_the_last_sync_is_not_live(study, recorder):
    mirror = Mirror(study, tracker="recorder", pause_s=0.05)
    mirror.start()
    for _ in range(100):
        mirror.notify()
    eventually(lambda: len(recorder.calls) >= 2)
    assert mirror.close() == Synced(1, 0, 0, "here")
    assert len(recorder.calls) < 10
    assert recorder.calls[-1] is False
    assert all(recorder.calls[:-1])


def test_an_outage_warns_once_and_is_made_good(study, recorder, caplog):
    recorder.down.set()
    mirror = Mirror(study, "http://ann:hunter2@example.org", "recorder", retry_s=0.02)
    with caplog.at_level(logging.INFO, logger="darec_search"):
        mirror.start()
        eventually(lambda: len(recorder.calls) >= 3)
        recorder.down.clear()
        eventually(lambda: "is up to date" in caplog.text)
        assert mirror.close() is not None
    warnings = [entry.message for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "the work goes on" in warnings[0]
    assert f"darec-search sync {study.folder} --tracking-uri" in warnings[0]
    assert "hunter2" not in caplog.text


def test_close_gives_up_on_a_tracker_that_hangs(study, recorder, caplog):
    recorder.hangs.set()
    mirror = Mirror(study, tracker="recorder")
    mirror.start()
    eventually(lambda: bool(recorder.calls))
    began = time.monotonic()
    assert mirror.close(timeout=0.2) is None
    assert time.monotonic() - began < 5
    assert "does not hold all of it" in caplog.text


def test_a_search_goes_on_without_its_server_and_is_synced_afterwards(study, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    mirror = Mirror(study, uri)
    began = time.monotonic()
    mirror.start()
    finish(study, ask(study, (0,) * 12, 0.1, "weights"), 0.02, 1_790_000_000.0)
    mirror.notify()
    assert time.monotonic() - began < 1, "the search had to wait"
    eventually(lambda: "the work goes on" in caplog.text)
    fail(study, ask(study, (1,) * 12, 0.1, "architecture"), "diverged", "The loss is not finite.")
    assert mirror.close() is None
    assert "Retrying" not in caplog.text

    later = TRACKERS["mlflow"](study, f"sqlite:///{study.folder.parent}/later.db").sync()
    assert (later.runs, later.created) == (3, 3)
