"""Run files: what they say, and `check` and `train` on them."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats
from tiny_studies import run_document, study_document

from darec_search import cli
from darec_search.runfile import is_run_file, load_run_file
from trainer.errors import BadInput


def run_file(folder, **sections):
    file = folder / "runs.yaml"
    file.write_text(yaml.safe_dump(run_document(folder, **sections), sort_keys=False))
    return file


RUNS = {
    "base": {},
    "dotted": {"losses.align": 0.5, "model.masks": ["causal"]},
    "nested": {"losses": {"align": 0.5}, "model": {"collaborative": {"model": "mf"}}},
}


def test_runs_differ_in_what_they_name_alone(tmp_path):
    file = load_run_file(run_file(tmp_path, runs=RUNS, losses={"contrastive": 0.2}))
    assert list(file.runs) == list(RUNS)
    base, dotted, nested = (run.config for run in file.runs.values())
    assert dotted.losses == nested.losses == base.losses.model_copy(update={"align": 0.5})
    assert (dotted.model.masks, nested.model.masks) == (("causal",), base.model.masks)
    assert nested.model.collaborative == base.model.collaborative.model_copy(update={"model": "mf"})
    assert base.losses.contrastive == 0.2
    assert base.data.path == str(tmp_path / "data")
    assert file.runs["base"].prepare.format == "synthetic"


def test_seeds(tmp_path):
    one = load_run_file(run_file(tmp_path, seed=7))
    assert (one.sweep, [run.seeds for run in one.runs.values()]) == (False, [(7,)])
    several = load_run_file(run_file(tmp_path, seeds=[0, 4], runs=RUNS))
    assert {seed: config.seed for seed, config in several.runs["base"].seeded().items()} == {0: 0, 4: 4}


def test_overrides_change_what_is_shared(tmp_path):
    file = load_run_file(run_file(tmp_path, runs=RUNS), ["losses.align=0.9", "runs.base.seed=3"])
    assert [run.config.losses.align for run in file.runs.values()] == [0.9, 0.5, 0.5]
    assert file.runs["base"].config.seed == 3


def test_every_problem_of_every_run_is_told_at_once(tmp_path):
    wrong = {"a": {"losses.align": -1}, "b": {"model.maskz": []}, "c": {"data.path.x": 1}}
    file = run_file(tmp_path, runs=wrong, optimization={"epochs": "many"})
    with pytest.raises(BadInput) as found:
        load_run_file(file)
    text = str(found.value)
    for words in ("runs.a.losses.align:", "runs.b.model.maskz: unknown field", "runs.c.data.path.x: 'path' is a value"):
        assert words in text
    shared = run_file(tmp_path, runs=RUNS, optimization={"epochs": "many"}, cachet="x")
    with pytest.raises(BadInput) as found:
        load_run_file(shared)
    text = str(found.value)
    assert "2 problems" in text
    assert "\n  optimization.epochs:" in text
    assert "\n  cachet: unknown field" in text


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"runs": {}}, "runs:"),
        ({"runs": {"a/b": {}}}, "a/b"),
        ({"runs": {"a": 3}}, "runs.a:"),
        ({"seeds": []}, "seeds:"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"seeds": [-1]}, "seeds.0:"),
    ],
    ids=["no-runs", "name", "no-fields", "no-seeds", "twice", "negative"],
)
def test_impossible_runs_and_seeds(tmp_path, sections, words):
    with pytest.raises(BadInput, match=r"runs\.yaml") as found:
        load_run_file(run_file(tmp_path, **sections))
    assert words in str(found.value)


def test_run_and_study_files_are_told_apart(tmp_path):
    assert is_run_file(run_document(tmp_path, runs=RUNS))
    assert not is_run_file(study_document(tmp_path))


def output(capsys, *arguments, code=0):
    assert cli.main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    return " ".join((captured.err if code else captured.out).split())


def test_check_takes_run_files_and_finds_what_is_wrong_with_any_run(capsys, tmp_path):
    file = run_file(tmp_path, runs=RUNS, seeds=[0, 1])
    assert "6 trainings" in output(capsys, "check", file)
    assert json.loads(output(capsys, "check", file, "--json")) == {"runs": list(RUNS), "trainings": 6, "missing": []}
    wrong = {"a": {"model.architecture": "SPS"}, "b": {"model.adapters.replacement_frequency": 9}, "c": {}}
    said = output(capsys, "check", run_file(tmp_path, runs=wrong), code=2)
    assert "model.architecture:" in said
    assert "describes 1 DALayers" in said
    assert "replacement_frequency" in said


def test_what_is_absent_but_named_is_no_error_of_the_file(capsys, tmp_path, monkeypatch):
    """On a fresh clone neither the raw data nor the hub's model are there; a run needs them, a check does not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = {"path": str(tmp_path / "no"), "prepare": {"format": "table", "source": str(tmp_path / "raw")}}
    model = {"backbone": {"name": "nobody/no-such-model"}}
    run = run_file(tmp_path, data=data, model=model)
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({**study_document(tmp_path), "data": data, "model": model}))
    for file in (run, study):
        said = output(capsys, "check", file)
        assert "is valid. Before it can run" in said
        assert "raw is not there" in said
        assert "nobody/no-such-model" in said
        assert len(json.loads(output(capsys, "check", file, "--json"))["missing"]) == 2
    assert "raw is not there" in output(capsys, "train", run, "--out", tmp_path / "out", code=2)
    assert "raw is not there" in output(capsys, "run", study, code=2)
    assert not (tmp_path / "out").exists()
    misspelt = run_file(tmp_path, data={**data, "prepare": {"format": "tabel", "source": "x"}}, model=model)
    assert "tabel" in output(capsys, "check", misspelt, code=2)
    folder = run_file(tmp_path, data=data, model={"backbone": {"name": "./no-folder"}})
    assert "does not exist" in output(capsys, "check", folder, code=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep of two runs with two seeds, trained and measured on the test split, in two goes."""
    folder = tmp_path_factory.mktemp("sweep")
    runs = {"mf": {"model.collaborative.model": "mf"}, "none": {"model.collaborative.model": "none"}}
    file = run_file(folder, runs=runs, seeds=[0, 1], optimization={"epochs": 1, "batch_size": 16})
    command = ["train", str(file), "--out", str(folder / "out"), "--test"]
    assert cli.main([*command, "--only", "none"]) == 0
    partly = json.loads((folder / "out" / "results.json").read_text())
    assert cli.main(command) == 0
    return folder / "out", command, partly


def test_a_sweep_leaves_a_folder_a_training_and_one_summary(trained):
    out, _, partly = trained
    assert [(run["name"], run["unfinished"]) for run in partly["runs"]] == [("mf", 2), ("none", 0)]
    found = json.loads((out / "results.json").read_text())
    assert (found["p_value_against"], found["p_value_split"]) == ("mf", "test")
    ranks = {}
    for run in found["runs"]:
        folders = [out / f"{run['name']}-{seed}" for seed in (0, 1)]
        measured = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        results = [json.loads((folder / "result.json").read_text()) for folder in folders]
        for split, values in (("test", measured), ("validation", [result["metrics"] for result in results])):
            mrr = [metrics["mrr"] for metrics in values]
            assert run[split]["mrr"] == {"mean": pytest.approx(np.mean(mrr)), "sd": np.std(mrr, ddof=1), "values": mrr}
        assert run["best_epoch"] == [1, 1]
        assert all(metrics["split"] == "test" and metrics["seconds"] > 0 for metrics in measured)
        tables = [pq.read_table(folder / "ranks.parquet").to_pandas() for folder in folders]
        assert (1 / tables[0]["rank"]).mean() == pytest.approx(measured[0]["mrr"])
        ranks[run["name"]] = (1 / tables[0]["rank"] + 1 / tables[1]["rank"]) / 2
    expected = stats.ttest_rel(ranks["mf"], ranks["none"]).pvalue
    first, second = (run["p_value"] for run in found["runs"])
    assert first is None
    assert second == pytest.approx(expected)
    assert not math.isnan(second)


def test_finished_trainings_are_not_repeated(capsys, trained):
    out, command, _ = trained
    before = {file: file.read_bytes() for file in out.glob("*/*") if file.is_file()}
    said = output(capsys, *command)
    assert "loss" not in said
    assert "none-1: finished before" in said
    assert "test, mean ± sd over seeds" in said
    assert {file: file.read_bytes() for file in out.glob("*/*") if file.is_file()} == before


def test_only_takes_names_of_runs(capsys, trained):
    assert "has no run 'mff'; its runs are mf, none" in output(capsys, *trained[1], "--only", "mff", code=2)


def test_a_single_run_is_measured_when_asked(capsys, tmp_path):
    file = run_file(tmp_path, optimization={"epochs": 1, "batch_size": 16})
    command = ["train", file, "--out", tmp_path / "out"]
    assert "epoch 1: loss" in output(capsys, *command)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert "test, 90 users: MRR" in output(capsys, *command, "--test")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["users"] == 90
