import json
import time

from tiny_runs import tiny_run

from trainer.training.run import run
from trainer.training.usage import USAGE, recorded_usage


def rows(folder):
    return [json.loads(line) for line in (folder / USAGE).read_text().splitlines()]


def test_samples_come_while_the_block_runs_and_at_its_end(tmp_path):
    before = time.time()
    with recorded_usage(tmp_path / "run", "cpu", True, interval_s=0.05):
        end = time.monotonic() + 20
        while not (tmp_path / "run" / USAGE).exists() or len(rows(tmp_path / "run")) < 2:
            sum(range(10_000))
            assert time.monotonic() < end
    found = rows(tmp_path / "run")
    assert len(found) >= 3
    assert before < found[0]["at"] < found[-1]["at"] <= time.time()
    assert max(row["process_cpu_percent"] for row in found) > 0
    assert all(row["process_memory_megabytes"] > 10 for row in found)


def test_a_run_records_it_when_asked(tmp_path):
    quiet = tiny_run(tmp_path, optimization={"epochs": 1})
    assert run(quiet, tmp_path / "quiet").status == "finished"
    assert not (tmp_path / "quiet" / USAGE).exists()
    assert run(quiet.model_copy(update={"system_metrics": True}), tmp_path / "asked").status == "finished"
    assert rows(tmp_path / "asked")[-1]["cpu_utilization_percentage"] >= 0


def test_what_cannot_be_recorded_does_not_fail_the_run(tmp_path, caplog):
    (tmp_path / USAGE).mkdir()
    with recorded_usage(tmp_path, "cpu", True):
        pass
    assert "is recorded no further" in caplog.text
