"""One controller a study, on a local folder and on a real S3-compatible server."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from owners import elsewhere, held_by

from darec_search.lease import Lease, LeaseLost, Owner
from trainer.errors import BadInput
from trainer.storage import Folder, Store

BEAT, TIME_TO_LIVE = 0.05, 0.4


@pytest.fixture(params=["s3", "folder"])
def objects(request, tmp_path):
    return Store(f"{request.getfixturevalue('bucket')}/study") if request.param == "s3" else Folder(tmp_path / "study")


def take(objects) -> Lease:
    return Lease.take(objects, "the study", time_to_live_s=TIME_TO_LIVE, beat_s=BEAT)


class Beating:
    """A holder on another machine that lives."""

    def __init__(self, objects, number: int = 1) -> None:
        self._objects, self._name = objects, f".lease/{number:06d}.beat"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(BEAT):
            count += 1
            self._objects.write(self._name, str(count).encode())

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *ignored):
        self._ended.set()
        self._thread.join()


def test_a_released_lease_is_taken_at_once(objects):
    for number in range(1, 4):
        lease = take(objects)
        assert f".lease/{number:06d}.json" in objects.names(".lease")
        lease.confirm()
        lease.release()


def test_the_second_controller_of_this_machine_is_told_at_once(objects):
    lease = take(objects)
    begun = time.monotonic()
    with pytest.raises(BadInput, match=f"another process is at work on this study: process {os.getpid()} of "):
        Lease.take(objects, "the study", time_to_live_s=60)
    assert time.monotonic() - begun < 30
    lease.release()


def test_a_second_controller_elsewhere_is_told_who_is_at_work(objects):
    held_by(objects, elsewhere(pid=4711, since="2026-11-26 14:02:00 UTC"))
    told = "process 4711 of ada on node-3, since 2026-11-26 14:02:00 UTC; stop it there, or wait until it ends"
    with Beating(objects), pytest.raises(BadInput, match=told):
        take(objects)
    assert objects.names(".lease").count(".lease/000002.json") == 0


def test_a_silent_holder_elsewhere_is_followed_after_its_time_to_live(objects):
    held_by(objects, elsewhere())
    objects.write(".lease/000001.beat", b"17")
    begun = time.monotonic()
    lease = take(objects)
    assert time.monotonic() - begun > TIME_TO_LIVE
    lease.confirm()
    lease.release()


def test_whoever_releases_while_another_waits_is_followed_at_once(objects):
    held_by(objects, elsewhere())
    release = threading.Timer(0.1, lambda: objects.write(".lease/000001.released", b""))
    release.start()
    begun = time.monotonic()
    Lease.take(objects, "the study", time_to_live_s=30, beat_s=BEAT).release()
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 5}, {"born": 5.0}], ids=["no such process", "another process"])
def test_a_dead_holder_of_this_machine_is_followed_at_once(objects, changes):
    held_by(objects, dataclasses.replace(Owner.this(), **changes))
    Lease.take(objects, "the study", time_to_live_s=60, beat_s=BEAT).release()


def test_of_many_that_find_a_silent_holder_one_takes_over(objects):
    held_by(objects, elsewhere())
    begin = threading.Barrier(4)

    def try_it(_: int) -> Lease | str:
        begin.wait()
        try:
            return take(objects)
        except BadInput as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(try_it, range(4)))
    (lease,) = [end for end in ends if isinstance(end, Lease)]
    assert all("another process is at work" in end for end in ends if isinstance(end, str))
    lease.confirm()
    lease.release()


@pytest.fixture
def heeding_interrupts():
    """As a terminal starts it; what a shell script starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_interrupts")
def test_a_holder_that_another_one_has_followed_may_not_go_on(objects):
    lease = take(objects)
    held_by(objects, elsewhere(pid=4712), number=2)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):  # it stops wherever it waits, of its own accord
        time.sleep(60)
    assert time.monotonic() - begun < 30
    assert lease.lost
    with pytest.raises(LeaseLost, match="process 4712 of ada on node-3 has taken this study over"):
        lease.confirm()
    lease.release()
    assert ".lease/000001.released" not in objects.names(".lease")


def test_a_holder_that_was_stopped_for_long_looks_before_it_goes_on(tmp_path):
    """Its own heartbeat sleeps as it does, so the first thing it does may be to write."""
    objects = Folder(tmp_path)
    lease = Lease.take(objects, "the study", beat_s=3600)
    lease.confirm()
    held_by(objects, elsewhere(), number=2)
    lease.confirm()  # it looked moments ago
    lease._looked -= 2 * 3600 + 1
    with pytest.raises(LeaseLost):
        lease.confirm()
    lease.release()


def test_a_holder_goes_on_when_storage_is_away_for_a_while(tmp_path, monkeypatch, caplog):
    objects = Folder(tmp_path)
    lease = take(objects)

    def away(name: str, data: bytes) -> None:
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(objects, "write", away)
        time.sleep(4 * BEAT)
    assert "no heartbeat (no answer)" in caplog.text
    before = objects.read(".lease/000001.beat")
    time.sleep(6 * BEAT)
    assert objects.read(".lease/000001.beat") != before
    lease.confirm()
    lease.release()


def test_storage_that_lets_two_create_the_same_is_refused(tmp_path, monkeypatch):
    objects = Folder(tmp_path)

    def overwrites(name: str, data: bytes) -> bool:
        objects.write(name, data)
        return True

    monkeypatch.setattr(objects, "create", overwrites)
    with pytest.raises(BadInput, match="so two controllers could run"):
        take(objects)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_controller_is_followed_at_once_and_a_stopped_one_is_not(tmp_path, how):
    script = f"""
        import time
        from pathlib import Path
        from darec_search.lease import Lease
        from trainer.storage import Folder
        lease = Lease.take(Folder(Path({str(tmp_path)!r})), "the study")
        print("taken", flush=True)
        time.sleep(600)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "taken\n"
        holder.send_signal(how)
        if how == signal.SIGKILL:
            Lease.take(Folder(tmp_path), "the study").release()  # not reaped yet, but dead
        else:
            with pytest.raises(BadInput, match=f"process {holder.pid} "):
                take(Folder(tmp_path))
    finally:
        holder.kill()
        holder.wait()
