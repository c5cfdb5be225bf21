"""The paper's experiments in examples/paper: accepted as they are, and every run trained on a small shop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from darec_search import cli
from darec_search.config import load_study, read_yaml
from darec_search.runfile import is_run_file, load_run_file
from darec_search.sweep import trainings
from trainer.architecture import FIXED_ARMS
from trainer.config import RunConfig
from trainer.data.prepare import prepare
from trainer.training.run import run
from trainer.training.warm import Warm

FILES = sorted((Path(__file__).resolve().parents[2] / "examples" / "paper").glob("*.yaml"))
RUN_FILES = [file for file in FILES if is_run_file(read_yaml(file))]
STUDIES = [file for file in FILES if file not in RUN_FILES]
TABLE_3 = {  # batch size, b, λ1, λ2, λ3
    "arts": (5, 0.04, 0.1, 1e-6, 0.001),
    "scientific": (6, 0.2, 0.2, 1e-3, 0.1),
    "instruments": (7, 0.1, 0.1, 1e-3, 0.05),
    "pantry": (8, 0.2, 0.2, 1e-6, 0.1),
    "games": (8, 0.06, 0.05, 1e-3, 0.01),
}


def names(file: Path) -> str:
    return file.stem


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    prepare("synthetic", None, folder / "data", users=90, items=80)
    return folder


@pytest.fixture(scope="module")
def warm():
    return Warm()


def tiny(shop: Path) -> list[str]:
    """What a synthetic shop and a tiny backbone take, and nothing that a figure is about."""
    return [
        f"data.path={shop / 'data'}",
        "data.prepare=null",
        "data.max_items=5",
        "data.max_item_tokens=5",
        "model.backbone={builtin: {layers: 6, hidden: 8, heads: 2, vocabulary: 300, steps: 3}}",
        "negatives={mf_dimension: 8, fraction: 0.1}",
        "optimization={epochs: 1, batch_size: 20, learning_rate: 0.003}",
        f"cache={shop / 'cache'}",
    ]


def finishes(config: RunConfig, folder: Path, warm: Warm) -> None:
    result = run(config, folder, warm=warm)
    assert result.status == "finished", result.reason
    assert all(math.isfinite(value) for row in result.curve for value in row.values())


@pytest.mark.parametrize("file", FILES, ids=names)
def test_check_accepts_it_on_a_fresh_clone(capsys, file, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", str(file), "--json"]) == 0
    missing = json.loads(capsys.readouterr().out)["missing"]
    assert any("data/amazon" in line for line in missing)


@pytest.mark.parametrize("file", STUDIES, ids=names)
def test_studies_hold_table_3_and_train(file, shop, warm, tmp_path):
    study = load_study(file)
    batch_size, fraction, *weights = TABLE_3[file.stem.removeprefix("table2_")]
    assert (study.optimization.batch_size, study.data.search_fraction) == (batch_size, fraction)
    assert [study.losses.align, study.losses.contrastive, study.losses.collaborative] == weights
    assert (study.search.trials, study.data.max_item_tokens, study.model.backbone.name) == (30, 30, "facebook/opt-125m")
    small = load_study(file, tiny(shop))
    for arm in FIXED_ARMS:
        finishes(small.run_config(arm, {}, 0, users_fraction=1.0, epochs=1), tmp_path / arm, warm)


@pytest.mark.parametrize("file", RUN_FILES, ids=names)
def test_all_runs_of_a_file_train(file, shop, warm, tmp_path):
    for training in trainings(load_run_file(file, tiny(shop)), tmp_path):
        finishes(training.config, training.folder, warm)


@pytest.mark.parametrize("file", RUN_FILES, ids=names)
def test_runs_of_a_file_differ(file):
    paper = [planned.config for planned in load_run_file(file).runs.values()]
    assert len({config.model_dump_json() for config in paper}) == len(paper) > 1
    batch_size, _, *weights = TABLE_3[file.stem.split("_")[1]]
    for config in paper:
        optimization = config.optimization
        assert (optimization.epochs, optimization.batch_size, optimization.learning_rate) == (40, batch_size, 5e-5)
    losses = paper[-1].losses
    if "fig7" not in file.stem:
        assert [losses.align, losses.contrastive] == weights[:2]
