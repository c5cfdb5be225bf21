"""What attempts at a run take, whatever becomes of their processes."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.training import attempts
from trainer.training.attempts import ATTEMPTS, KILLED, Held, attempt, end_open, in_lines, lost, recorded

HELD = Held(cpus=2, gpus=0.5)
ENDS = ("finished", "stopped", "lost", "killed", "killed at once")


def play(folder, clock, seconds, end, idle):
    """One attempt at a run of so many seconds by a clock; the time that it counts."""
    started = clock[0]
    if end in ("finished", "stopped"):
        with suppress(KeyboardInterrupt), attempt(folder, "lane-0", HELD, every_s=1000):
            clock[0] += seconds
            if end == "stopped":
                raise KeyboardInterrupt
    else:  # the process is gone in the middle: what stands in the folder is a beginning, and perhaps a sign of life
        end_open(folder, KILLED)
        row = {"attempt": f"a{started}", "started_at": started, "worker": "lane-0", "cpus": 2, "gpus": 0.5}
        with (folder / ATTEMPTS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        clock[0] += seconds
        if end == "killed":
            (folder / "alive.json").write_text(json.dumps({"attempt": f"a{started}", "at": clock[0]}))
        elif end == "lost":
            end_open(folder, "its machine went", clock[0])
            end_open(folder, "told twice", clock[0] + 5)
    clock[0] += idle
    return 0.0 if end == "killed at once" else seconds


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 500), st.sampled_from(ENDS), st.integers(0, 500)), max_size=8))
def test_any_sequence_of_attempts_counts_each_once(sequence):
    clock = [1_000_000.0]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.setattr(attempts.time, "time", lambda: clock[0])
        patch.setattr(attempts.time, "monotonic", lambda: clock[0])
        folder = Path(scratch)
        counted = [play(folder, clock, *one) for one in sequence]
        found = recorded(folder)
        assert [one.seconds for one in found] == counted
        assert {one.held for one in found} <= {HELD}
        end_open(folder, KILLED)
        assert [one.seconds for one in recorded(folder)] == counted
        assert len(lost(folder)) == sum(end != "finished" for _, end, _ in sequence)


def test_an_attempt_that_an_error_ends_says_which(tmp_path):
    with pytest.raises(RuntimeError), attempt(tmp_path, "a", HELD):
        raise RuntimeError("worker 1\nis gone")
    assert lost(tmp_path) == ("worker 1 is gone",)


def test_a_line_that_a_crash_cut_spoils_no_other(tmp_path):
    with attempt(tmp_path, "a", HELD):
        pass
    with (tmp_path / ATTEMPTS).open("a") as file:
        file.write('{"attempt": "b", "star')
    with attempt(tmp_path, "c", HELD):
        pass
    assert [(one.worker, one.over, one.cut) for one in recorded(tmp_path)] == [("a", True, None), ("c", True, None)]


def test_lines_that_stand_twice_count_once():
    start = {"attempt": "a", "started_at": 10.0, "worker": None, "cpus": 1, "gpus": 0}
    end = {"attempt": "a", "ended_at": 15.0, "cut": None}
    lines = [json.dumps(row) for row in (start, end, start, {**end, "ended_at": 99.0})]
    assert [one.seconds for one in in_lines(lines, {"a": 50.0})] == [5.0]


def test_an_attempt_whose_process_is_killed_ends_with_its_last_sign_of_life(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from trainer.training.attempts import Held, attempt\n"
        "with attempt(Path(sys.argv[1]), 'w', Held(), every_s=0.02):\n"
        "    print(flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.5)
        killed_at = time.time()
        process.send_signal(signal.SIGKILL)
    [one] = recorded(tmp_path)
    assert not one.over
    assert killed_at - 0.4 < one.ended_at <= killed_at + 0.1
    with attempt(tmp_path, "again", Held()):
        first, _ = recorded(tmp_path)
        assert (first.over, first.cut, first.ended_at) == (True, KILLED, one.ended_at)
