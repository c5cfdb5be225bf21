"""Bad input: one clear sentence on standard error, exit code 2, nothing trained."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from darec_search.cli import main
from trainer.data.prepare import prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    prepare("synthetic", None, folder, users=150, items=80)
    return folder


def document(shop: Path, folder: Path, **sections: dict) -> dict:
    builtin = {"layers": 2, "hidden": 16, "heads": 2, "vocabulary": 320, "steps": 5}
    base = {
        "name": "tiny",
        "output": str(folder / "study"),
        "cache": str(folder / "cache"),
        "data": {"path": str(shop), "max_items": 8},
        "model": {"backbone": {"builtin": builtin}},
        "resources": {"runner": "local"},
        "tracking": {"enabled": False},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return base


def refused(capsys, arguments: list[str]) -> str:
    code = main(arguments)
    out = capsys.readouterr()
    assert code == 2, out.err
    assert "Traceback" not in out.err
    return " ".join(out.err.split())


def refused_study(capsys, tmp_path, content: dict | str, command: str = "run", *more: str) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    sentence = refused(capsys, [command, str(file), *more])
    assert not list(tmp_path.glob("study/trials/*"))
    return sentence


def write(folder: Path, items: str, interactions: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "items.csv").write_text(items)
    (folder / "interactions.csv").write_text(interactions)
    return folder


ITEMS = "id,title\na,Saw\nb,Lamp\nc,Mug\nd,Cup\n"
ROWS = "".join(f"u{u},{'abcd'[(u + t) % 4]},{t}\n" for u in range(5) for t in range(5))
INTERACTIONS = f"user,item,timestamp\n{ROWS}"


@pytest.mark.parametrize(
    ("items", "interactions", "options", "words"),
    [
        (ITEMS.replace("b,Lamp", "b"), INTERACTIONS, [], ["items.csv", "3"]),
        (ITEMS, INTERACTIONS.replace("u1,c,1", "u1,c"), [], ["interactions.csv", "8"]),
        (ITEMS.replace("title", "heading"), INTERACTIONS, [], ["items.csv", "title", "heading"]),
        (ITEMS, INTERACTIONS, ["--timestamp", "when"], ["interactions.csv", "when", "timestamp"]),
        (ITEMS + "a,Saw again\n", INTERACTIONS, [], ["items.csv", "'a'"]),
        (ITEMS, INTERACTIONS + "u1,zebra,9\n", [], ["interactions.csv", "zebra", "27"]),
        (ITEMS, INTERACTIONS, ["--min-user-interactions", "9"], ["users"]),
        (ITEMS, INTERACTIONS, ["--min-user-interactions", "many"], ["min_user_interactions"]),
    ],
    ids=["short-item", "short-row", "no-title", "unknown-column", "twice", "unknown-item", "too-few", "no-number"],
)
def test_raw_data(capsys, tmp_path, items, interactions, options, words):
    source = write(tmp_path / "raw", items, interactions)
    out = tmp_path / "out"
    sentence = refused(capsys, ["data", "prepare", str(source), "--format", "table", "--out", str(out), *options])
    assert all(word in sentence for word in words), sentence
    assert not out.exists()


def test_good_raw_data_is_taken(capsys, tmp_path):
    source = write(tmp_path / "raw", ITEMS, INTERACTIONS)
    assert main(["data", "prepare", str(source), "--format", "table", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["data", "show", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["users"], shown["items"], shown["interactions"], shown["train_interactions"]) == (5, 4, 25, 15)
    assert len(shown["fingerprint"]) == 64


def test_sources_and_formats_that_are_not_there(capsys, tmp_path):
    arguments = ["data", "prepare", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert "nowhere" in refused(capsys, [*arguments, "--format", "table"])
    assert "synthetic, table" in refused(capsys, [*arguments, "--format", "tabel"])
    assert "nowhere" in refused(capsys, ["data", "show", str(tmp_path / "nowhere")])


def test_every_problem_of_a_config_is_told_at_once(capsys, tmp_path, data):
    wrong = document(data, tmp_path, search={"trails": 3, "trials": 0}, optimization={"epochs": "many"}, seed="x")
    sentence = refused_study(capsys, tmp_path, wrong)
    for words in ("4 problems", "search.trails: unknown field", "search.trials:", "optimization.epochs:", "seed:"):
        assert words in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [("name: [", "not valid YAML"), ("- a\n- b\n", "field: value"), ("name: tiny\n", "data: Field required")],
)
def test_files_that_are_no_study(capsys, tmp_path, text, words):
    assert words in refused_study(capsys, tmp_path, text)


def test_a_study_file_that_is_not_there(capsys, tmp_path):
    assert "no.yaml: cannot be read" in refused(capsys, ["run", str(tmp_path / "no.yaml")])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"path": "nowhere"}}, ["nowhere", "data prepare"]),
        ({"search": {"sampler": "tpe"}}, ["search.sampler", "optuna_tpe"]),
        ({"search": {"sampler_options": {"begin": 3}}}, ["search.sampler_options.begin"]),
        ({"search": {"sampler": "random", "fidelities": [{"users_fraction": 0.5}]}}, ["search.fidelities", "ax_bayes"]),
        ({"search": {"epochs": 2, "fidelities": [{"epochs": 2}]}}, ["search.fidelities.0", "no cheaper trial"]),
        ({"search": {"epochs": 2, "fidelities": [{"epochs": 3, "users_fraction": 0.1}]}}, ["search.fidelities.0"]),
        (
            {"search": {"epochs": 2, "fidelities": [{"epochs": 1}, {"users_fraction": 0.5}]}},
            ["search.fidelities.1", "costs as much"],
        ),
        ({"search": {"fixed_architecture": "SPS"}}, ["search.fixed_architecture", "2"]),
        ({"model": {"backbone": {"name": "./no-folder"}}}, ["model.backbone.name", "does not exist"]),
        ({"model": {"adapters": {"replacement_frequency": 3}}}, ["replacement_frequency", "at most 2"]),
    ],
    ids=[
        "data",
        "sampler",
        "sampler-option",
        "refused",
        "as-dear",
        "longer",
        "same-cost",
        "architecture",
        "backbone",
        "frequency",
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_values_that_cannot_be(capsys, tmp_path, data, sections, words, command):
    wrong = document(data, tmp_path)
    for name, section in sections.items():
        wrong.setdefault(name, {})
        for field, value in section.items():
            merge = isinstance(value, dict) and field in wrong[name] and "name" not in value
            wrong[name][field] = {**wrong[name][field], **value} if merge else value
    sentence = refused_study(capsys, tmp_path, wrong, command)
    assert all(word in sentence for word in words), sentence


def test_a_backbone_folder_that_is_no_model(capsys, tmp_path, data):
    (tmp_path / "model").mkdir()
    wrong = document(data, tmp_path)
    wrong["model"] = {"backbone": {"name": str(tmp_path / "model")}}
    assert "is no model folder" in refused_study(capsys, tmp_path, wrong)


def test_streams_longer_than_the_backbone(capsys, tmp_path, data):
    wrong = document(data, tmp_path, data={"max_items": 400})
    assert "lower one of the two" in refused_study(capsys, tmp_path, wrong)


def test_a_folder_that_holds_something_else(capsys, tmp_path, data):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.tex").write_text("dear")
    assert "choose another `output`" in refused_study(capsys, tmp_path, document(data, tmp_path))
    assert (tmp_path / "study" / "thesis.tex").read_text() == "dear"


def test_a_folder_of_another_study(capsys, tmp_path, data):
    from darec_search.config import StudyConfig
    from darec_search.study import Study
    from trainer.data.dataset import Dataset

    other = StudyConfig.model_validate(document(data, tmp_path, losses={"temperature": 0.5}))
    Study.open(other, Dataset.open(data).fingerprint, 2)
    sentence = refused_study(capsys, tmp_path, document(data, tmp_path))
    assert "belongs to another study" in sentence
    assert "losses.temperature" in sentence


def test_overrides(capsys, tmp_path, data):
    good = document(data, tmp_path)
    assert "section.field=value" in refused_study(capsys, tmp_path, good, "run", "--set", "search.trials")
    assert "search.trials" in refused_study(capsys, tmp_path, good, "run", "--set", "search.trials=-1")


@pytest.mark.slow
def test_a_ray_address_that_does_not_answer(capsys, tmp_path, data):
    wrong = document(data, tmp_path, resources={"runner": "ray"})
    started = time.monotonic()
    sentence = refused_study(capsys, tmp_path, wrong, "run", "--address", "127.0.0.1:9")
    assert "127.0.0.1:9" in sentence
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "arguments",
    [["status", "nowhere"], ["report", "nowhere"], ["export", "nowhere", "--to", "x"], ["sync", "nowhere"]],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_is_no_study(capsys, arguments):
    assert "nowhere" in refused(capsys, arguments)


def test_a_folder_that_is_no_model(capsys, tmp_path):
    assert "no exported model" in refused(capsys, ["recommend", str(tmp_path), "--history", "a"])
    assert "no exported model" in refused(capsys, ["evaluate", str(tmp_path), str(tmp_path)])
