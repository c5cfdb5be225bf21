"""Studies at a URL, on a real S3-compatible server: the controller publishes, other machines read and go on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from owners import elsewhere, held_by
from study_folders import START, ask, finish, new_study
from tiny_studies import LAYERS, study_config, study_file

from darec_search import pipeline, planning, runners
from darec_search.cli import main
from darec_search.config import StudyConfig
from darec_search.controller import search
from darec_search.controlling import controlling
from darec_search.export import load
from darec_search.identity import check_folder
from darec_search.lease import LeaseLost
from darec_search.runners.base import DoneEvent
from darec_search.runners.cluster import disconnect
from darec_search.runners.exchange import Exchange
from darec_search.runners.final import run_final
from darec_search.study import Study
from trainer.data.dataset import Dataset, openings_of
from trainer.errors import BadInput
from trainer.storage import Folder, Store, scratch
from trainer.training.ranks import RANKS
from trainer.training.result import RunResult

FINGERPRINT = "f" * 64


@pytest.fixture
def config(bucket) -> StudyConfig:
    return new_study(scratch() / "unused", output=f"{bucket}/study").config


def opened(config: StudyConfig, lease) -> Study:
    return Study.open(config, FINGERPRINT, 4, lease)


def there(config: StudyConfig) -> set[str]:
    return {name for name in Store(config.url).entries() if not name.startswith(".lease/")}


def test_what_the_controller_writes_is_read_on_another_machine(config, another_machine):
    with controlling(config) as lease:
        study = opened(config, lease)
        trial = ask(study, [0] * study.space.bits, 0.1, "weights")
        study.write("promotion.json", "{}")
        assert there(config) == {
            "study.yaml", "environment.json", "promotion.json", f"trials/{trial.spec.id}/spec.json"
        }  # fmt: skip
        finish(study, trial, 0.03, START)
        study.publish(f"trials/{trial.spec.id}")
    another_machine()
    found = Study.load(config.url)
    assert (found.id, found.config.output) == (study.id, config.url)
    assert [(t.spec, t.result) for t in found.trials()] == [(t.spec, t.result) for t in study.trials()]


def test_only_what_is_new_crosses_the_network(config, monkeypatch):
    with controlling(config) as lease:
        study = opened(config, lease)
        Study.load(config.url)
        monkeypatch.setattr(Store, "download", lambda *_: pytest.fail("is here already"))
        assert Study.load(config.url).id == study.id


def test_without_the_lease_nothing_is_published(config):
    with controlling(config) as lease:
        opened(config, lease)
    before = there(config)
    reader = Study.load(config.url)
    ask(reader, [0] * reader.space.bits, 0.1, "weights")
    reader.write("report.html", "mine")
    assert there(config) == before
    assert (reader.folder / "report.html").read_text() == "mine"


def test_two_controllers_cannot_run(config):
    told = f"{config.url}: another process is at work on this study"
    with controlling(config), pytest.raises(BadInput, match=told), controlling(config):
        pytest.fail("both run")


@pytest.mark.parametrize("place", ["url", "folder"])
def test_a_controller_that_was_followed_writes_nothing_more(config, tmp_path, place):
    if place == "folder":
        config = config.model_copy(update={"output": str(tmp_path / "study")})
    objects = Store(config.url) if place == "url" else Folder(config.folder)
    with controlling(config) as lease:
        study = opened(config, lease)
        held_by(objects, elsewhere(), number=2)
        lease._looked -= 60  # it was stopped for a minute
        for write in (
            lambda: study.write("promotion.json", "{}"),
            lambda: ask(study, [0] * study.space.bits, 0.1, "weights"),
            lambda: study.discard("study.yaml"),
        ):
            with pytest.raises(LeaseLost, match="on node-3 has taken this study over"):
                write()
    assert {path.name for path in study.folder.rglob("*.json")} - {"000001.json", "000002.json"} == {"environment.json"}
    assert objects.read("promotion.json") is None
    assert objects.read("study.yaml") is not None


def test_whatever_interrupts_a_controller_that_was_followed_is_told_as_that(config):
    def work() -> None:
        with controlling(config) as lease:
            held_by(Store(config.url), elsewhere(), number=2)
            lease._look()
            raise KeyboardInterrupt

    with pytest.raises(LeaseLost, match="the study goes on there"):
        work()


def test_a_start_begins_with_what_was_published_and_nothing_else(config):
    with controlling(config) as lease:
        study = opened(config, lease)
        trials = [ask(study, [0] * study.space.bits, align, "weights") for align in (0.01, 0.1)]
        study.write("promotion.json", "old")
        finish(study, trials[0], 0.03, START)  # its worker was killed before it could publish
        (study.folder / "promotion.json").write_text("half of the ne")
        (trials[0].folder / "checkpoint").mkdir()
        (trials[0].folder / "checkpoint" / "kept").write_text("x")
    Store(config.url).remove([f"trials/{trials[1].spec.id}/spec.json"])  # on purpose, to have it run again
    Study.load(config.url)  # a reader leaves what is not published as it is
    assert study.trial(trials[0].spec.id).result is not None
    with controlling(config) as lease:
        again = opened(config, lease)
        assert [(trial.spec.id, trial.status) for trial in again.trials()] == [(trials[0].spec.id, "pending")]
        assert (study.folder / "promotion.json").read_text() == "old"
        assert (trials[0].folder / "checkpoint" / "kept").exists()


def test_what_is_discarded_is_gone_at_the_url_too(config):
    with controlling(config) as lease:
        study = opened(config, lease)
        study.write("final/run.json", "{}")
        Store(config.url).write("final/checkpoint/epoch-00001.files", b"of another winner")
        study.discard("final")
        assert there(config) == {"study.yaml", "environment.json"}
        assert not (study.folder / "final").exists()


def test_a_url_of_something_else_is_refused(bucket, config):
    Store(f"{bucket}/study").write("thesis.tex", b"years of work")
    with pytest.raises(BadInput, match=f"{config.url}: is not empty and holds no study"):
        check_folder(config, FINGERPRINT, 4)
    with pytest.raises(BadInput, match="is no study folder"):
        Study.load(f"{bucket}/nothing")
    other = config.model_copy(update={"output": "http://example.invalid/study"})
    with pytest.raises(BadInput, match="http:// cannot hold a study"):
        check_folder(other, FINGERPRINT, 4)


def test_the_command_line_takes_a_url(config, capsys, another_machine):
    with controlling(config) as lease:
        study = opened(config, lease)
        finish(study, ask(study, [0] * study.space.bits, 0.1, "weights"), 0.03, START)
        study.publish("trials")
    another_machine()
    assert main(["status", config.url, "--json"]) == 0
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    assert trial["status"] == "finished"
    assert main(["status", f"{config.url}-not"]) == 2
    assert "is no study folder" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["output", "cache", "data"])
def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path, field, capsys):
    secret = "s3://AKIAKEY:hunter2@bucket/x"
    file = study_file(tmp_path, **{field: {"path": secret} if field == "data" else secret})
    assert main(["run", str(file)]) == 2
    told = capsys.readouterr().err
    assert "credentials and options have no place in a URL" in told
    assert "hunter2" not in told


def job(url: str) -> dict:
    return {
        "id": "a", "config": {}, "folder": "/nowhere", "url": f"{url}/trials/a", "time_limit_s": 5.0,
        "keep_model": False, "stoppable": False, "attempt": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("waits", "status"), [(0.0, "failed"), (6.0, "timed_out")])
def test_a_trial_that_loses_its_worker_ends_at_the_url(config, waits, status):
    async def scenario() -> None:
        exchange = Exchange(attempts=1)
        await exchange.submit(job(config.url))
        await exchange.take("lane-0", "lane-0/1", 0.05)
        exchange._entries["a"].taken_at -= waits
        await exchange.lost("lane-0", "killed")

    asyncio.run(scenario())
    assert RunResult.model_validate_json(Store(config.url).read("trials/a/result.json")).status == status


def test_a_worker_that_died_after_its_work_did_it(config):
    done = RunResult(status="finished", metrics={"mrr": 0.5})
    Store(config.url).write("trials/a/result.json", done.model_dump_json().encode())

    async def scenario() -> list:
        exchange = Exchange(attempts=1)
        await exchange.submit(job(config.url))
        await exchange.take("lane-0", "lane-0/1", 0.05)
        await exchange.lost("lane-0", "killed")
        return await exchange.messages(0.05)

    (message,) = asyncio.run(scenario())
    assert RunResult.model_validate(message["content"]) == done


class Cut:
    """Counts what is trained, and ends it all at a given stage, as a kill would."""

    def __init__(self, stage: str | None = None, after: int = 10**6) -> None:
        self.done: list[str] = []
        self._stage, self._after = stage, after

    def stage(self, text: str, runs: int = 0, done: object = ()) -> None:
        if self._stage is not None and text.startswith(self._stage):
            raise KeyboardInterrupt

    def event(self, event: object) -> None:
        if isinstance(event, DoneEvent):
            self.done.append(event.trial_id)
            if len(self.done) == self._after:
                raise KeyboardInterrupt


def everywhere(bucket: str, machine: Path) -> bytes:
    """All that a study has left: on this machine, and at the URL."""
    store = Store(bucket)
    files = b"".join(path.read_bytes() for path in machine.rglob("*") if path.is_file())
    return files + b"".join(store.read(name) or b"" for name in store.entries())


@pytest.mark.slow
def test_a_study_on_shared_storage_goes_on_from_machine_to_machine(bucket, tmp_path, another_machine, caplog):
    places = {"output": f"{bucket}/study", "cache": f"{bucket}/cache", "tracking": {"enabled": False}}
    small = {"search": {"trials": 2, "weights": {"align": [0.1]}}, "promotion": {"repeats": 1}}
    config = study_config(tmp_path, **places, **small, data={"path": f"{bucket}/data"})
    observers = []
    for observer in (Cut(after=2), Cut("final run")):
        machine = another_machine()
        observers.append(observer)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config, observer)
        assert not list(machine.rglob("test.parquet"))
    another_machine()
    observers.append(Cut())
    result = pipeline.run(config, observers[-1])
    trained = [trial for observer in observers for trial in observer.done]
    assert sorted(trained) == sorted({trial.spec.id for trial in result.study.trials()})  # each once
    assert len(openings_of(f"{bucket}/data")) == 2  # the final comparison, and the export's verification
    assert caplog.text.count("building ") <= 2 * len({"backbone", "negatives", "data"}) + len(observers)

    another_machine()
    carried, item = Study.load(f"{bucket}/study").folder / "best", Dataset.open(f"{bucket}/data").item_ids[0]
    assert load(carried).recommend([[item]]) == load(result.model).recommend([[item]])
    assert Store(f"{bucket}/study").entries().keys() > {"report.html", "best/architecture.json", "final/metrics.json"}

    left = everywhere(bucket, tmp_path)
    assert b"tiny" in left
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in left + caplog.text.encode()


@pytest.fixture
def with_room_for_sockets(bucket, monkeypatch):
    """A machine whose folder for temporary files has a short name: Ray keeps sockets there."""
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield
        disconnect()


@pytest.mark.cluster
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("with_room_for_sockets")
def test_lanes_work_in_folders_of_their_own_and_meet_at_the_url(bucket, tmp_path):
    config = study_config(
        tmp_path, output=f"{bucket}/study", cache=f"{bucket}/cache", data={"path": f"{bucket}/data"},
        search={"trials": 2, "strategy": "joint", "weights": {}}, resources={"runner": "ray", "lanes": 1},
        promotion={"num_workers": 2},
    )  # fmt: skip
    dataset = planning.open_dataset(config)
    with controlling(config) as lease:
        study = Study.open(config, dataset.fingerprint, LAYERS, lease)
        with runners.create(study) as runner:
            search(study, runner)
        assert [trial.status for trial in study.trials()] == ["finished", "finished"]
        assert all((trial.folder / RANKS).exists() for trial in study.trials())
        run = config.run_config("serial", {}, 0, users_fraction=1.0, epochs=1)
        assert run_final(config, run, study.folder / "final", url=study.url("final")).status == "finished"
        study.fetch("final")
        assert study.final_result().status == "finished"
        assert (study.folder / "final" / "model.safetensors").exists()
    assert not [path for path in scratch().glob("runs/**/*") if path.is_file()]
    shutil.rmtree(study.folder)
    assert [trial.status for trial in Study.load(config.url).trials()] == ["finished", "finished"]
