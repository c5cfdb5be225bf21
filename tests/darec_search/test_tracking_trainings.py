"""Trainings without a study in MLflow: those of a run file, a single one, and a folder that is measured by the way."""

import json
import shutil

import pytest
import yaml
from study_folders import open_store
from tiny_studies import run_document

from darec_search import cli
from darec_search.tracking import TRACKERS
from darec_search.tracking.trainings import Trainings
from trainer.training.result import RunResult

mlflow = pytest.importorskip("mlflow")

RUNS = {
    "popularity": {"baseline.name": "popularity"},
    "sasrec": {"baseline": {"name": "sasrec", "options": {"hidden": 8, "layers": 1}}},
    "darec": {"model.architecture": "parallel", "optimization.learning_rate": 0.001},
}


def runs_of(uri, experiment):
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    runs = {run.data.tags["darec.trial"]: run for run in found}
    assert len(runs) == len(found), "a run stands there twice"
    return client, runs


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A sweep that logged while it ran: its folder and MLflow's URI."""
    folder = tmp_path_factory.mktemp("sweep")
    out = folder / "comparison"
    uri = open_store(out / "mlflow.db")
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump(run_document(folder, runs=RUNS, seeds=[0, 1])))
    assert cli.main(["train", str(file), "--out", str(out), "--test", "--mlflow"]) == 0
    return out, uri


def test_every_training_is_a_run_below_its_folder(tracked):
    out, uri = tracked
    client, runs = runs_of(uri, "comparison")
    parent = runs.pop("study")
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "comparison")
    assert "results.json" in {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert set(runs) == {f"{name}-{seed}" for name in RUNS for seed in (0, 1)}
    for name, run in runs.items():
        measured = json.loads((out / name / "metrics.json").read_text())
        result = RunResult.model_validate_json((out / name / "result.json").read_text())
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test/mrr"] == measured["mrr"]
        assert run.data.metrics["valid/recall_at_10"] == result.metrics["recall@10"]
        assert {use.tags[0].value for use in run.inputs.dataset_inputs} == {"full", "test"}
        assert {use.dataset.digest for use in run.inputs.dataset_inputs} == {result.fingerprint[:36]}
        assert len(client.get_metric_history(run.info.run_id, "curve/mrr")) == len(result.curve)


def test_parameters_say_in_what_trainings_differ(tracked):
    _, runs = runs_of(tracked[1], "comparison")
    shown = {name: dict(run.data.params) for name, run in runs.items()}
    common = {"users_fraction": "1.0", "epochs": "2"}
    assert shown["darec-1"] == {
        **{"method": "darec", "architecture": "parallel", "seed": "1"},
        **{"optimization.learning_rate": "0.001", **common},
    }
    options = {f"baseline.options.{name}": value for name, value in (("hidden", "8"), ("layers", "1"))}
    assert (
        shown["sasrec-0"] == {"method": "sasrec", "seed": "0", "optimization.learning_rate": "0.003"} | options | common
    )
    assert (
        shown["popularity-0"] == {"method": "popularity", "seed": "0", "optimization.learning_rate": "0.003"} | common
    )


def test_a_sync_adds_what_is_new_and_nothing_twice(capsys, tracked, tmp_path):
    out = shutil.copytree(tracked[0], tmp_path / "comparison")
    uri = f"sqlite:///{out}/mlflow.db"
    again = TRACKERS["mlflow"](Trainings(out), None).sync()
    assert (again.runs, again.created, again.updated) == (7, 0, 0)
    (out / "shop" / "references" / "neighbours").mkdir(parents=True)
    metrics = {"split": "test", "mrr": 0.5, "recall@10": 0.75, "ndcg@10": 0.625}
    (out / "shop" / "references" / "neighbours" / "metrics.json").write_text(json.dumps(metrics))
    shutil.copytree(out / "sasrec-0", out / "shop" / "trainings" / "sasrec-5")
    (out / "shop" / "trainings" / "sasrec-5" / "result.json").unlink()
    assert cli.main(["sync", str(out)]) == 0
    assert "9 runs (2 new" in capsys.readouterr().out
    _, runs = runs_of(uri, "comparison")
    reference = runs["shop/references/neighbours"]
    assert (reference.data.params["method"], reference.data.metrics["test/mrr"]) == ("neighbours", 0.5)
    assert runs["shop/trainings/sasrec-5"].info.status == "KILLED"
    assert runs["study"].info.status == "KILLED"


def test_a_single_training_is_a_run_of_its_own(tracked, tmp_path):
    out = shutil.copytree(tracked[0] / "darec-0", tmp_path / "alone")
    uri = open_store(tmp_path / "other.db")
    assert cli.main(["sync", str(out), "--tracking-uri", uri]) == 0
    _, runs = runs_of(uri, "alone")
    assert [(run.info.run_name, run.data.params["method"]) for run in runs.values()] == [("alone", "darec")]
