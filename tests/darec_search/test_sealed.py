"""The test split is sealed: searching, re-testing and training on all users need it not, and every opening is noted."""

import ast
import shutil
from pathlib import Path

import pytest
from tiny_studies import study_config

from darec_search import pipeline
from darec_search.cli import main
from darec_search.final_models import split_openings
from darec_search.study import Study
from trainer.data.dataset import openings_of
from trainer.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
MAY_OPEN = {
    "trainer/data/dataset.py",
    "darec_search/commands/model.py",
    "darec_search/final_models.py",
    "darec_search/recommender.py",
    "darec_search/verification.py",
    "darec_search/sweep.py",
    "darec_search/reproduce/references.py",
}


def test_a_study_without_its_test_file_stops_only_where_the_split_is_opened(finished, tmp_path):
    home = finished.study.folder.parent
    shutil.copytree(home / "data", tmp_path / "data")
    held_out = tmp_path / "data" / "test.parquet"
    held_out.rename(tmp_path / "test.parquet")
    data = {"path": str(tmp_path / "data"), "prepare": None}
    config = study_config(
        home, output=str(tmp_path / "study"), data=data, tracking={"enabled": False},
        search={"trials": 1, "weights": {"align": [0.1]}}, promotion={"repeats": 1},
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"test.parquet: cannot be read"):
        pipeline.run(config)
    study = Study.load(tmp_path / "study")
    assert {trial.status for trial in study.trials()} == {"finished"}
    assert {"architecture", "retest", "variant", "full"} <= {trial.spec.stage for trial in study.trials()}
    assert study.final_result().status == "finished"

    (tmp_path / "test.parquet").rename(held_out)
    before = {file: file.stat().st_mtime_ns for file in study.folder.glob("trials/*/result.json")}
    assert pipeline.run(config).comparison[0]["name"] == "winner"
    assert {file: file.stat().st_mtime_ns for file in study.folder.glob("trials/*/result.json")} == before


def test_only_a_final_comparison_and_an_evaluation_can_open_it():
    found = set()
    for file in (*ROOT.glob("trainer/**/*.py"), *ROOT.glob("darec_search/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            opens = isinstance(node, ast.Attribute) and node.attr in ("unsealed", "open_test")
            names_file = isinstance(node, ast.Constant) and node.value == "test.parquet"
            if opens or names_file:
                found.add(str(file.relative_to(ROOT)))
    assert found - {"trainer/data/prepare.py"} == MAY_OPEN  # preparing writes the file


def test_every_opening_is_noted_in_the_study_and_with_the_data(finished, tmp_path):
    home = finished.study.folder.parent
    shutil.copytree(home / "data", tmp_path / "data")
    shutil.copytree(finished.study.folder, tmp_path / "study")
    before = len(openings_of(tmp_path / "data"))
    assert before >= 1
    arguments = ["evaluate", str(tmp_path / "study" / "best"), str(tmp_path / "data"), "--json"]
    assert main([*arguments, "--split", "validation"]) == 0
    assert len(openings_of(tmp_path / "data")) == before
    assert main(arguments) == 0
    noted = openings_of(tmp_path / "data")
    assert len(noted) == before + 1
    assert "evaluation of the export" in noted[-1]["reason"]
    comparison, *_, evaluation = split_openings(Study.load(tmp_path / "study"))
    assert (comparison["reason"], evaluation["reason"]) == ("final comparison", "evaluate")
    assert evaluation["time"] > comparison["time"]
