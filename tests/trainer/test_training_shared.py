"""Runs whose folder lies at a URL, on a real S3-compatible server: what one machine began, another one ends."""

from __future__ import annotations

import pytest
from tiny_runs import tiny_data, tiny_run

from trainer.storage import StorageError, Store
from trainer.training.attempts import ATTEMPTS, recorded
from trainer.training.ranks import RANKS, load_ranks
from trainer.training.result import RunResult, write_atomic
from trainer.training.run import run, run_by_epochs
from trainer.training.shared import SharedRun
from trainer.training.warm import Warm


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny_data(folder, users=60, items=80)
    return tiny_run(folder, optimization={"epochs": 2, "batch_size": 12, "learning_rate": 3e-3})


@pytest.fixture(scope="module")
def warm():
    return Warm()


def begun(config, warm, folder, url: str) -> None:
    """A run that its machine lost after its first epoch."""
    running = run_by_epochs(config, folder, warm=warm, url=url)
    next(running)
    running.close()


def curve(result: RunResult) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in ("time", "seconds")} for row in result.curve]


def names(url: str) -> set[str]:
    return set(Store(url).entries())


def test_another_machine_goes_on_from_the_checkpoint_bit_for_bit(config, warm, bucket, tmp_path):
    url = f"{bucket}/study/trials/a"
    whole = run(config, tmp_path / "whole", warm=warm, keep_model=True)
    begun(config, warm, tmp_path / "one", url)
    assert names(url) == {"checkpoint/epoch-00001.files"}
    rows = []
    ended = run(config, tmp_path / "two", warm=warm, keep_model=True, url=url, on_row=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2]  # the first is that of the checkpoint, and not computed again
    assert (ended.metrics, curve(ended)) == (whole.metrics, curve(whole))
    model = "model.safetensors"
    assert (tmp_path / "two" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
    assert names(url) == {"result.json", "curve.jsonl", ATTEMPTS, RANKS, model}
    assert RunResult.model_validate_json(Store(url).read("result.json")) == ended
    assert [attempt.over for attempt in recorded(tmp_path / "two")] == [True, True]  # the other machine's counts too


def test_only_the_newest_checkpoint_is_kept_and_a_newer_one_here_is_not_replaced(config, warm, bucket, tmp_path):
    url, folder = f"{bucket}/study/trials/a", tmp_path / "run"
    begun(config, warm, folder, url)
    (folder / "checkpoint" / "epoch-00001").rename(folder / "checkpoint" / "epoch-00002")
    shared = SharedRun(url, folder)
    shared.fetch_checkpoint()
    assert [path.name for path in (folder / "checkpoint").glob("epoch-*")] == ["epoch-00002"]
    shared.publish_checkpoint()
    assert names(url) == {"checkpoint/epoch-00002.files"}
    assert not list(folder.glob(".*"))


def test_a_checkpoint_that_cannot_be_published_costs_nothing_now(config, warm, bucket, tmp_path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise StorageError("cannot write (Slow Down)")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "upload", refuse)
        begun(config, warm, tmp_path, f"{bucket}/study/trials/a")
    assert "the checkpoint of" in caplog.text
    assert "Slow Down" in caplog.text
    assert (tmp_path / "checkpoint" / "epoch-00001").is_dir()


def test_a_damaged_checkpoint_is_left_aside(config, warm, bucket, tmp_path, caplog):
    url = f"{bucket}/study/trials/a"
    Store(url).write("checkpoint/epoch-00001.files", b"no archive")
    assert run(config, tmp_path, warm=warm, url=url).status == "finished"
    assert "epoch-00001 at the URL is not usable" in caplog.text


def test_a_result_that_cannot_be_published_is_heard_of_by_nobody(config, warm, bucket, tmp_path, monkeypatch):
    url = f"{bucket}/study/trials/a"

    def refuse(*_: object) -> None:
        raise StorageError("cannot write (Service Unavailable)")

    begun(config, warm, tmp_path, url)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", refuse)
        with pytest.raises(StorageError, match="Service Unavailable"):
            run(config, tmp_path, warm=warm, url=url)
    assert names(url) > {"checkpoint/epoch-00002.files"}
    assert run(config, tmp_path, warm=warm, url=url).status == "finished"
    assert {"result.json"} < names(url)


def test_the_first_result_counts_with_all_that_belongs_to_it(bucket, tmp_path):
    def worker(name: str, mrr: float) -> RunResult:
        result = RunResult(status="finished", metrics={"mrr": mrr}, worker=name)
        write_atomic(tmp_path / name / "result.json", result.model_dump_json(indent=2))
        write_atomic(tmp_path / name / "curve.jsonl", f"curve of {name}")
        return SharedRun(f"{bucket}/study/trials/a", tmp_path / name).publish_result(result)

    first = worker("one", 0.5)
    assert worker("two", 0.25) == first
    assert RunResult.model_validate_json((tmp_path / "two" / "result.json").read_text()) == first
    assert (tmp_path / "two" / "curve.jsonl").read_text() == "curve of one"


def test_storage_that_is_away_is_no_failure_of_the_run(config, warm, bucket, tmp_path, monkeypatch):
    def away(*_: object) -> None:
        raise StorageError("cannot list (no answer)")

    monkeypatch.setattr(Store, "names", away)
    with pytest.raises(StorageError):
        run(config, tmp_path, warm=warm, url=f"{bucket}/study/trials/a")
    assert not (tmp_path / "result.json").exists()
    assert load_ranks(tmp_path, 0.5) is None
