"""The main job from data to export, in this process, on a tiny shop; and what becomes of it when it is cut short."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from darec_search import pipeline
from darec_search.cli import main
from darec_search.config import StudyConfig
from darec_search.export import load
from darec_search.runners.base import DoneEvent
from trainer.data.dataset import Dataset


def document(folder):
    return {
        "name": "tiny",
        "output": str(folder / "study"),
        "cache": str(folder / "cache"),
        "data": {
            "path": str(folder / "data"),
            "prepare": {"format": "synthetic", "options": {"users": 150, "items": 80}},
            "search_fraction": 0.5,
            "max_items": 8,
            "max_item_tokens": 8,
        },
        "model": {
            "backbone": {"builtin": {"layers": 2, "hidden": 16, "heads": 2, "vocabulary": 320, "steps": 20}},
            "adapters": {"bottleneck": 4},
            "collaborative": {"dimension": 4},
        },
        "negatives": {"mf_dimension": 8},
        "optimization": {"epochs": 2, "batch_size": 16, "learning_rate": 0.003},
        "search": {"trials": 3, "epochs": 1, "sampler": "random", "weights": {"align": [0.1, 1.0]}},
        "resources": {"runner": "local"},
        "promotion": {"candidates": 1, "repeats": 1},
    }


class Watch:
    """Counts what is trained, and may end it all at a given point, as a kill would."""

    def __init__(self, stop_at: str | None = None):
        self.done: list[str] = []
        self.stop_at = stop_at

    def stage(self, text, runs=0, done=()):
        if self.stop_at is not None and text.startswith(self.stop_at):
            raise KeyboardInterrupt

    def event(self, event):
        if isinstance(event, DoneEvent):
            self.done.append(event.trial_id)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("main-job")


@pytest.fixture(scope="module")
def result(home):
    return pipeline.run(StudyConfig.model_validate(document(home)))


def test_it_goes_from_data_to_an_export(result, home):
    study = result.study
    stages = [trial.spec.stage for trial in study.trials()]
    assert stages.count("weights") == 2
    assert stages.count("architecture") == 3
    assert {trial.status for trial in study.trials()} == {"finished"}
    names = [row["name"] for row in result.comparison]
    others = [arm for arm in ("serial", "parallel") if arm != result.promotion.winner]
    assert names == ["winner", result.promotion.winner, *others, "popularity", "neighbours"]
    decision = json.loads((study.folder / "promotion.json").read_text())
    best = next(candidate for candidate in decision["candidates"] if candidate["arm"] == decision["winner"])
    assert best["interval"][0] < decision["value"]["mean"] == best["estimate"] < best["interval"][1]
    assert decision["spent"] == sum(len(candidate["trials"]) for candidate in decision["candidates"])
    metrics = json.loads((study.folder / "final" / "metrics.json").read_text())
    assert (metrics["split"], metrics["users"]) == ("test", 150)
    assert metrics["mrr"] == result.comparison[0]["mrr"]
    opened = json.loads((study.folder / "test_opened.json").read_text())
    assert [entry["fingerprint"] for entry in opened] == [study.fingerprint]
    for part in (
        "architecture.json",
        "model.safetensors",
        "items.parquet",
        "README.md",
        "architecture.png",
        "backbone",
    ):
        assert (result.model / part).exists(), part
    assert result.report.exists()
    assert result.tracking is not None
    assert result.tracking.model == "tiny/1"


def test_again_it_trains_nothing_and_says_the_same(result, home):
    watch = Watch()
    again = pipeline.run(StudyConfig.model_validate(document(home)), watch)
    assert watch.done == []
    assert (again.promotion, again.comparison) == (result.promotion, result.comparison)
    assert len(again.study.trials()) == len(result.study.trials())


def test_cut_short_at_every_stage_it_ends_the_same(result, home, tmp_path):
    cut = document(home)
    cut["output"] = str(tmp_path / "study")
    cut["tracking"] = {"enabled": False}
    config, trained = StudyConfig.model_validate(cut), []
    for stage in ("re-test", "arms on all users", "final run", "test split", "export"):
        watch = Watch(stop_at=stage)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config, watch)
        trained += watch.done
    watch = Watch()
    again = pipeline.run(config, watch)
    assert watch.done == []
    assert len(trained) == len(set(trained)) == len(again.study.trials())
    assert again.promotion.winner == result.promotion.winner
    assert again.comparison == result.comparison


def test_an_export_works_in_a_fresh_process_wherever_it_lies(result, home, tmp_path):
    assert main(["export", str(home / "study"), "--to", str(tmp_path / "carried")]) == 0
    item = Dataset.open(home / "data").item_ids[0]
    command = [
        sys.executable,
        "-m",
        "darec_search",
        "recommend",
        str(tmp_path / "carried"),
        "--history",
        item,
        "--json",
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    found = json.loads(output)[0]["items"]
    here = load(result.model).recommend([[item]])[0]
    assert [entry["id"] for entry in found] == [entry.id for entry in here]
