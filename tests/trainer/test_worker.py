"""What a lane's worker does by itself; with Ray around it, see tests/darec_search/test_runners_real.py."""

import subprocess
import sys
import textwrap
import time

import pytest

from trainer.worker import time_limit


def test_work_within_the_limit_leaves_no_trace(tmp_path):
    with time_limit(30, tmp_path / "trial" / "stacks.txt"):
        pass
    assert not (tmp_path / "trial" / "stacks.txt").exists()


def test_an_error_cancels_the_limit(tmp_path):
    with pytest.raises(ValueError, match="mine"), time_limit(30, tmp_path / "stacks.txt"):
        raise ValueError("mine")


def test_a_limit_that_ends_nothing_still_leaves_the_stacks(tmp_path):
    with time_limit(0.1, tmp_path / "stacks.txt", exit=False):
        patience = time.monotonic() + 20
        while "most recent call first" not in (tmp_path / "stacks.txt").read_text():
            assert time.monotonic() < patience


@pytest.mark.parametrize(
    "work", ["while True: time.sleep(1)", "re.fullmatch('(a|a)*b', 'a' * 60)"], ids=["sleep", "gil"]
)
def test_work_that_hangs_ends_the_process_and_leaves_its_stacks(tmp_path, work):
    script = f"""
        import re, time
        from pathlib import Path
        from trainer.worker import time_limit
        def hanging():
            {work}
        with time_limit(0.5, Path({str(tmp_path / "stacks.txt")!r})):
            hanging()
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=120, check=False)
    assert ended.returncode != 0
    assert "hanging" in (tmp_path / "stacks.txt").read_text()
