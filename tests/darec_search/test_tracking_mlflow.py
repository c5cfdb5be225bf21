"""MLflow as a copy of the study folder, on real SQLite stores."""

import json
import socket
import sqlite3
from pathlib import Path

import pytest
from study_folders import LEVELS, ask, begin, curve, fail, finish, new_study, search, whole_study

from darec_search.study import Study
from darec_search.tracking import TRACKERS
from darec_search.tracking.base import Synced
from darec_search.tracking.records import records
from trainer.errors import BadInput

mlflow = pytest.importorskip("mlflow")


def sync(study: Study, uri: str | None = None, live: bool = False) -> Synced:
    return TRACKERS["mlflow"](study, uri).sync(live=live)


def client_of(study: Study, uri: str | None = None):
    return mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{study.folder}/mlflow.db")


def runs_of(study: Study, uri: str | None = None) -> dict:
    client = client_of(study, uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    found = client.search_runs([experiment], max_results=1000)
    runs = {run.data.tags["darec.trial"]: run for run in found}
    assert len(runs) == len(found), "a run stands there twice"
    return runs


def table_sizes(study: Study) -> dict[str, int]:
    with sqlite3.connect(study.folder / "mlflow.db") as connection:
        names = ("runs", "metrics", "latest_metrics", "params", "tags", "model_versions", "registered_model_aliases")
        return {name: connection.execute(f"select count(*) from {name}").fetchone()[0] for name in names}


def artifacts(client, run_id: str, path: str | None = None) -> set[str]:
    return {item.path for item in client.list_artifacts(run_id, path)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Study:
    study = whole_study(tmp_path_factory.mktemp("whole") / "study")
    (study.folder / "report.html").write_text("<p>report</p>")
    (study.folder / "report").mkdir()
    (study.folder / "report" / "best.png").write_bytes(b"png")
    sync(study)
    return study


def test_one_parent_and_a_child_for_every_trial_and_the_final_run(whole):
    runs = runs_of(whole)
    assert set(runs) == {"study", "final", *(trial.spec.id for trial in whole.trials())}
    parent = runs.pop("study")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}


def test_a_trial_shows_its_design_its_curve_and_its_origin(whole):
    trial = next(trial for trial in whole.trials() if trial.spec.stage == "architecture" and trial.objective)
    run = runs_of(whole)[trial.spec.id]
    for index, bit in enumerate(trial.spec.bits):
        slot = ("causal", "context", "recommendation")[index % 3]
        assert run.data.params[f"L{index // 3}.{slot}"] == ("parallel" if bit else "serial")
    assert run.data.params["lambda.align"] == "0.1"
    assert run.data.params["sampler"] == "ax_bayes"
    assert run.data.tags["darec.fingerprint"] == whole.fingerprint
    assert run.data.tags["darec.status"] == "finished"
    assert run.data.metrics["best_mrr"] == pytest.approx(trial.objective)
    history = client_of(whole).get_metric_history(run.info.run_id, "recall_at_10")
    expected = {int(row["step"]): row["recall@10"] for row in trial.result.curve}
    assert {metric.step: metric.value for metric in history} == pytest.approx(expected)
    started = trial.result.cost.started_at
    assert sorted(metric.timestamp for metric in history) == [round(1000 * (started + 2 * i)) for i in (1, 2, 3, 4)]
    names = {"spec.json", "result.json", "architecture.json", "run.json"}
    assert names <= artifacts(client_of(whole), run.info.run_id)


def test_a_failed_trial_says_why(whole):
    trial = next(trial for trial in whole.trials() if trial.status == "out_of_memory")
    run = runs_of(whole)[trial.spec.id]
    assert run.info.status == "FAILED"
    assert run.data.tags["darec.status"] == "out_of_memory"
    assert "CUDA out of memory" in run.data.tags["darec.reason"]


def test_the_parent_shows_progress_references_and_pictures(whole):
    parent = runs_of(whole)["study"]
    client = client_of(whole)
    best = [metric.value for metric in client.get_metric_history(parent.info.run_id, "best_mrr")]
    assert best == sorted(best)
    assert len(best) == len(whole.trials())
    assert parent.data.metrics["test_mrr"] == pytest.approx(0.03)
    assert parent.data.metrics["test_mrr.popularity"] == pytest.approx(0.015)
    assert {"study.yaml", "environment.json", "promotion.json", "report.html"} <= artifacts(client, parent.info.run_id)
    assert artifacts(client, parent.info.run_id, "report") == {"report/best.png"}


def test_the_champion_is_registered_from_the_final_run(whole):
    client = client_of(whole)
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.run_id == runs_of(whole)["final"].info.run_id
    files = artifacts(client, version.run_id, "model")
    assert {"model/architecture.json", "model/model.safetensors", "model/backbone"} <= files
    assert Path(version.source.removeprefix("file://"), "model.safetensors").read_bytes() == bytes(64)


def test_a_replay_changes_nothing(whole):
    before = table_sizes(whole)
    again = sync(whole)
    assert (again.created, again.updated, again.model) == (0, 0, "tiny/1")
    assert again.runs == len(whole.trials()) + 2
    assert table_sizes(whole) == before


def test_a_sync_that_was_cut_short_is_repeated_without_double_rows(whole):
    before = table_sizes(whole)
    client = client_of(whole)
    for run in runs_of(whole).values():
        client.set_tag(run.info.run_id, "darec.digest", "")
    client.delete_tag(runs_of(whole)["final"].info.run_id, "darec.model")
    repeated = sync(whole)
    assert (repeated.created, repeated.updated) == (0, before["runs"])
    assert table_sizes(whole) == before


def test_a_new_export_becomes_the_champion(tmp_path):
    study = whole_study(tmp_path / "study")
    assert sync(study).model == "tiny/1"
    (study.folder / "best" / "architecture.json").write_text(json.dumps({"hash": "other"}))
    assert sync(study).model == "tiny/2"
    assert client_of(study).get_model_version_by_alias("tiny", "champion").version == 2


def test_running_trials_show_their_curve_and_waiting_ones_nothing(tmp_path):
    study = new_study(tmp_path / "study")
    running, waiting = (ask(study, (bit,) * 12, 0.1, "architecture") for bit in (0, 1))
    tracker = TRACKERS["mlflow"](study, None)
    assert tracker.sync(live=True).runs == 1
    begin(running, rows=2)
    tracker.sync(live=True)
    run = runs_of(study)[running.spec.id]
    assert run.info.status == "RUNNING"
    assert waiting.spec.id not in runs_of(study)
    steps = [metric.step for metric in client_of(study).get_metric_history(run.info.run_id, "mrr")]
    assert steps == [10, 20]

    # The search is killed; whoever syncs next finds the run without its worker.
    sync(study)
    stopped = runs_of(study)
    assert stopped[running.spec.id].info.status == "KILLED"
    assert stopped["study"].info.status == "KILLED"

    # It is resumed from a checkpoint, with other clock times for the same steps, and ends.
    sync(study, live=True)
    assert runs_of(study)[running.spec.id].info.status == "RUNNING"
    finish(study, running, 0.04, started=1_790_000_500.0)
    sync(study, live=True)
    ended = runs_of(study)[running.spec.id]
    assert ended.info.status == "FINISHED"
    assert ended.info.end_time == 1_790_000_509_000
    steps = [metric.step for metric in client_of(study).get_metric_history(run.info.run_id, "mrr")]
    assert sorted(steps) == [10, 20, 30, 40]


def test_a_half_written_curve_line_waits_for_its_end(tmp_path):
    study = new_study(tmp_path / "study")
    trial = ask(study, (0,) * 12, 0.1, "architecture")
    first, second = (json.dumps(row) for row in curve(0.03, 4)[:2])
    (trial.folder / "curve.jsonl").write_text(f"{first}\n{second[:25]}")
    (record,) = (record for record in records(study, live=True) if record.key == trial.spec.id)
    assert [row.step for row in record.rows] == [10]


def test_long_curves_and_many_layers_go_in_several_requests(tmp_path):
    study = new_study(tmp_path / "study", layers=40)
    trial = ask(study, (0, 1, 1) * 40, 0.1, "architecture")
    rows = [{**row, "step": float(i)} for i in range(400) for row in curve(0.03, 1)]
    (trial.folder / "curve.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    sync(study)
    run = runs_of(study)[trial.spec.id]
    assert sum(name.startswith("L") for name in run.data.params) == 120
    assert len(client_of(study).get_metric_history(run.info.run_id, "mrr")) == 400


def test_a_restart_with_another_budget_is_no_conflict(tmp_path):
    study = new_study(tmp_path / "study", trials=5)
    search(study, finished=4, failed=0)
    sync(study)
    longer = new_study(tmp_path / "study", trials=50, name="tiny")
    assert sync(longer).created == 0


def test_passwords_never_reach_the_store_or_the_messages(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", "hunter2")
    uri = f"sqlite:///{tmp_path}/other.db"
    study = new_study(tmp_path / "study", tracking={"uri": "http://ann:${PLANTED}@127.0.0.1:1/?token=${PLANTED}"})
    fail(study, ask(study, (0,) * 12, LEVELS[0], "weights"), "failed", "no luck")
    sync(study, uri)
    parent = runs_of(study, uri)["study"]
    client = client_of(study, uri)
    text = Path(client.download_artifacts(parent.info.run_id, "study.yaml")).read_text()
    assert "ann:${PLANTED}@" in text
    assert "hunter2" not in text
    assert b"hunter2" not in (tmp_path / "other.db").read_bytes()
    with pytest.raises(BadInput) as error:
        sync(study)
    assert "hunter2" not in str(error.value)


def test_a_server_that_is_down_is_one_clear_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    study = new_study(tmp_path / "study")
    with pytest.raises(BadInput, match=rf"127.0.0.1:{port}: MLflow cannot be reached .*\(Connection refused\)$"):
        sync(study, f"http://127.0.0.1:{port}")
