"""MLflow as a copy of the study folder, on real SQLite stores."""

import json
import socket
import sqlite3
from pathlib import Path

import pytest
from study_folders import (
    LEVELS,
    START,
    ask,
    begin,
    curve,
    fail,
    final_run,
    finish,
    new_study,
    open_store,
    search,
    whole_study,
)

from darec_search.study import Study
from darec_search.tracking import TRACKERS
from darec_search.tracking.base import Synced, Tracker
from darec_search.tracking.records import records
from darec_search.tracking.training_record import CURVE
from trainer.architecture import Architecture
from trainer.errors import BadInput

mlflow = pytest.importorskip("mlflow")


def sync(study: Study, uri: str | None = None, live: bool = False) -> Synced:
    return tracker_of(study, uri).sync(live=live)


def tracker_of(study: Study, uri: str | None = None) -> Tracker:
    open_store(study.folder / "mlflow.db")
    return TRACKERS["mlflow"](study, uri)


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
        names = ("runs", "metrics", "latest_metrics", "params", "tags", "datasets", "inputs", "input_tags")
        names += ("experiment_tags", "model_versions", "model_version_tags", "registered_model_aliases")
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


def test_one_parent_and_a_child_for_every_trial_the_final_run_and_each_reference(whole):
    runs = runs_of(whole)
    references = {"popularity", "neighbours"}
    assert set(runs) == {"study", "final", *references, *(trial.spec.id for trial in whole.trials())}
    parent = runs.pop("study")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}


def test_a_trial_shows_its_design_its_curve_and_its_origin(whole):
    trial = next(trial for trial in whole.trials() if trial.spec.stage == "architecture" and trial.objective)
    run = runs_of(whole)[trial.spec.id]
    text = Architecture(trial.spec.bits).text
    assert [run.data.params[f"L{layer}"] for layer in range(4)] == text.split("-")
    assert run.data.params["parallel_adapters"] == str(sum(trial.spec.bits))
    assert run.data.params["lambda.align"] == "0.1"
    assert run.info.run_name == f"{trial.spec.number:03d} {text}"
    assert run.data.tags["darec.status"] == "finished"
    assert run.data.metrics["objective"] == pytest.approx(trial.objective)
    assert run.data.metrics["valid/mrr"] == pytest.approx(trial.objective)
    history = client_of(whole).get_metric_history(run.info.run_id, "curve/recall_at_10")
    expected = {int(row["step"]): row["recall@10"] for row in trial.result.curve}
    assert {metric.step: metric.value for metric in history} == pytest.approx(expected)
    started = trial.result.cost.started_at
    assert sorted(metric.timestamp for metric in history) == [round(1000 * (started + 2 * i)) for i in (1, 2, 3, 4)]
    names = {"spec.json", "result.json", "architecture.json", "run.json"}
    assert names <= artifacts(client_of(whole), run.info.run_id)


def test_what_all_trials_share_stands_in_the_parent_alone(whole):
    runs = runs_of(whole)
    constants = runs.pop("study").data.params
    assert constants["lambda.contrastive"] == "0.001"
    assert not any(constants.keys() & run.data.params.keys() for run in runs.values())
    columns = {
        kind: {name for run in [*runs.values()] for name in getattr(run.data, kind) if not name.startswith("mlflow.")}
        for kind in ("params", "metrics", "tags")
    }
    assert sum(len(found) for found in columns.values()) < 60, columns


def test_values_that_cannot_be_compared_have_other_names(whole):
    runs = runs_of(whole)
    compared = {key for key, run in runs.items() if "objective" in run.data.metrics}
    assert compared == {trial.spec.id for trial in whole.trials() if trial.objective is not None}
    tested = {
        run.info.run_name: run.data.metrics["test/mrr"] for run in runs.values() if "test/mrr" in run.data.metrics
    }
    assert tested.pop("popularity, no training") == pytest.approx(0.015)
    assert tested.pop("neighbours, no training") == pytest.approx(0.02)
    assert sorted(tested.values()) == pytest.approx([0.03, 0.03])  # the final run, and the study as a whole


def test_a_fixed_arm_gets_its_test_figures_after_its_end(tmp_path):
    study = new_study(tmp_path / "study")
    search(study, finished=4, failed=0)
    full = finish(study, ask(study, (0,) * 12, 0.1, "full", "serial", 7), 0.03, START + 900)
    tracker = tracker_of(study)
    tracker.sync(live=True)
    final_run(study, (1,) * 12)
    tracker.sync()
    run = runs_of(study)[full.spec.id]
    assert run.data.metrics["test/mrr"] == pytest.approx(0.027)
    contexts = {i.tags[0].value for i in client_of(study).get_run(run.info.run_id).inputs.dataset_inputs}
    assert contexts == {"search", "test"}


def test_runs_say_which_data_they_read(whole):
    run = client_of(whole).get_run(runs_of(whole)["final"].info.run_id)
    found = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert set(found) == {"full", "test"}
    assert found["full"].name == "data"
    assert found["full"].digest == whole.fingerprint[:36]
    assert json.loads(found["full"].profile) == {"fingerprint": whole.fingerprint}
    assert json.loads(found["test"].schema)["mlflow_colspec"]


def test_the_experiment_has_a_saved_view_that_names_what_is_there(whole):
    tags = client_of(whole).get_experiment_by_name("tiny").tags
    state = json.loads(json.loads(tags[f"mlflow.sharedViewState.{whole.id}"])["state"])
    runs = runs_of(whole).values()
    known = {f"{kind}.`{name}`" for run in runs for kind in ("params", "metrics") for name in getattr(run.data, kind)}
    assert set(state["selectedColumns"]) <= known
    parallel = next(chart for chart in state["compareRunCharts"] if chart["type"] == "PARALLEL")
    assert parallel["selectedParams"] == ["L0", "L1", "L2", "L3", "lambda.align"]
    experiment = client_of(whole).get_experiment_by_name("tiny").experiment_id
    shown = client_of(whole).search_runs([experiment], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"])
    assert len(shown) == len(runs) - 1
    values = [run.data.metrics["objective"] for run in shown if "objective" in run.data.metrics]
    assert values == sorted(values, reverse=True)


def test_a_failed_trial_says_why(whole):
    trial = next(trial for trial in whole.trials() if trial.status == "out_of_memory")
    run = runs_of(whole)[trial.spec.id]
    assert run.info.status == "FAILED"
    assert run.data.tags["darec.status"] == "out_of_memory"
    assert "CUDA out of memory" in run.data.tags["darec.reason"]


def test_the_parent_shows_progress_verdict_and_pictures(whole):
    parent = runs_of(whole)["study"]
    client = client_of(whole)
    best = [metric.value for metric in client.get_metric_history(parent.info.run_id, "curve/best_objective")]
    assert best == sorted(best)
    assert len(best) == len(whole.trials())
    assert parent.data.metrics["test/mrr"] == pytest.approx(0.03)
    note = parent.data.tags["mlflow.note.content"]
    assert "SPS-PSP-SPS-PSP" in note
    assert "| popularity | 0.0150 | 0.0300 | 0.0180 |" in note
    assert {"study.yaml", "environment.json", "promotion.json", "report.html"} <= artifacts(client, parent.info.run_id)
    assert artifacts(client, parent.info.run_id, "report") == {"report/best.png"}


def test_a_replay_changes_nothing(whole):
    before = table_sizes(whole)
    again = sync(whole)
    assert (again.created, again.updated, again.model) == (0, 0, "tiny/1")
    assert again.runs == len(whole.trials()) + 4
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


def test_running_trials_show_their_curve_and_waiting_ones_nothing(tmp_path):
    study = new_study(tmp_path / "study")
    running, waiting = (ask(study, (bit,) * 12, 0.1, "architecture") for bit in (0, 1))
    tracker = tracker_of(study)
    assert tracker.sync(live=True).runs == 1
    begin(running, rows=2)
    tracker.sync(live=True)
    run = runs_of(study)[running.spec.id]
    assert run.info.status == "RUNNING"
    assert waiting.spec.id not in runs_of(study)
    steps = [metric.step for metric in client_of(study).get_metric_history(run.info.run_id, "curve/mrr")]
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
    steps = [metric.step for metric in client_of(study).get_metric_history(run.info.run_id, "curve/mrr")]
    assert sorted(steps) == [10, 20, 30, 40]


def test_the_use_of_the_machine_is_a_series_of_its_own(tmp_path):
    study = new_study(tmp_path / "study")
    trial = ask(study, (0,) * 12, 0.1, "architecture")
    begin(trial, rows=2)
    tracker = tracker_of(study)
    tracker.sync(live=True)
    rows = [{"at": START + 5 * i, "process_cpu_percent": 90.0 + i, "process_memory_megabytes": 700.0} for i in range(3)]
    (trial.folder / "usage.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tracker.sync(live=True)
    finish(study, trial, 0.03, START)
    sync(study)
    run_id = runs_of(study)[trial.spec.id].info.run_id
    history = client_of(study).get_metric_history(run_id, "system/process_cpu_percent")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (i, 90.0 + i, round(1000 * (START + 5 * i))) for i in range(3)
    ]
    assert "usage.jsonl" in artifacts(client_of(study), run_id)


def test_a_half_written_curve_line_waits_for_its_end(tmp_path):
    study = new_study(tmp_path / "study")
    trial = ask(study, (0,) * 12, 0.1, "architecture")
    first, second = (json.dumps(row) for row in curve(0.03, 4)[:2])
    (trial.folder / "curve.jsonl").write_text(f"{first}\n{second[:25]}")
    (record,) = (record for record in records(study, live=True) if record.key == trial.spec.id)
    assert [row.step for row in record.rows[CURVE]] == [10]


def test_long_curves_and_many_layers_go_in_several_requests(tmp_path):
    study = new_study(tmp_path / "study", layers=40)
    trial = ask(study, (0, 1, 1) * 40, 0.1, "architecture")
    rows = [{**row, "step": float(i)} for i in range(400) for row in curve(0.03, 1)]
    (trial.folder / "curve.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    sync(study)
    run = runs_of(study)[trial.spec.id]
    assert [run.data.params[f"L{layer:02d}"] for layer in range(40)] == ["SPP"] * 40
    assert len(client_of(study).get_metric_history(run.info.run_id, "curve/mrr")) == 400


def test_a_restart_with_another_budget_is_no_conflict(tmp_path):
    study = new_study(tmp_path / "study", trials=5)
    search(study, finished=4, failed=0)
    sync(study)
    longer = new_study(tmp_path / "study", trials=50, name="tiny")
    assert sync(longer).created == 0


def test_passwords_never_reach_the_store_or_the_messages(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", "hunter2")
    uri = open_store(tmp_path / "other.db")
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
