from __future__ import annotations

import json

import pytest
import torch
from tiny_models import save_tiny_opt
from tiny_runs import tiny_data, tiny_run

from trainer.data.dataset import Dataset
from trainer.inference import restore
from trainer.metrics import ranking_metrics
from trainer.training.loop import Training
from trainer.training.model_file import load_model
from trainer.training.result import RunResult
from trainer.training.run import run
from trainer.training.warm import Warm


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def warm():
    return Warm()


def comparable(result: RunResult) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in result.curve]


def test_a_run_learns_and_leaves_its_result(home, warm, tmp_path):
    rows = []
    config = tiny_run(home, optimization={"epochs": 8, "batch_size": 8, "learning_rate": 5e-3})
    # Random ranking of 80 items has an MRR of about 0.06.
    result = run(config, tmp_path, warm=warm, on_row=rows.append, worker="me", keep_model=True)
    assert result.status == "finished"
    assert rows == result.curve
    assert result.curve[-1]["loss/total"] < 0.98 * result.curve[0]["loss/total"]
    assert result.metrics["mrr"] > 0.08
    assert RunResult.model_validate_json((tmp_path / "result.json").read_text()) == result
    assert [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()] == result.curve
    best = max(result.curve, key=lambda row: row["mrr"])
    assert result.metrics["mrr"] == best["mrr"]
    assert result.best_epoch == best["epoch"]
    assert not (tmp_path / "checkpoint").exists()
    dataset = Dataset.open(tiny_data(home))
    assert result.fingerprint == dataset.fingerprint
    restored = restore(config, load_model(tmp_path / "model.safetensors"), warm)
    ranks = restored.ranks(dataset, "validation", known_users=True)
    found = ranking_metrics(ranks)
    assert found == pytest.approx({name: result.metrics[name] for name in found}, abs=1e-6)


def test_the_same_seed_gives_the_same_curve_and_another_seed_another(home, warm, tmp_path):
    one, two, other = (run(tiny_run(home, seed=s), tmp_path / n, warm=warm) for s, n in [(3, "a"), (3, "b"), (4, "c")])
    assert comparable(one) == comparable(two)
    assert comparable(one) != comparable(other)


def test_a_sampled_softmax_learns_and_ranks_all_items(home, warm, tmp_path):
    optimization = {"epochs": 8, "batch_size": 8, "learning_rate": 5e-3}
    result = run(tiny_run(home, optimization=optimization, losses={"sampled_items": 20}), tmp_path, warm=warm)
    assert result.status == "finished", result.reason
    # An estimate of the loss over all 80 items, which starts at about ln 80 = 4.4.
    assert 4.0 < result.curve[0]["loss/sequence"] < 4.6
    assert result.curve[-1]["loss/sequence"] < result.curve[0]["loss/sequence"]
    assert result.metrics["mrr"] > 0.08


def test_an_architecture_that_does_not_fit_is_a_failed_run_not_a_crash(home, warm, tmp_path):
    result = run(tiny_run(home, model={"architecture": "SSS"}), tmp_path, warm=warm)
    assert (result.status, "describes 1 DALayers" in result.reason) == ("failed", True)


@pytest.mark.parametrize(
    "model",
    [
        {"masks": ["causal"], "collaborative": {"model": "none"}},
        {"masks": ["causal"], "adapters": {"enabled": False}, "collaborative": {"model": "none"}},
        {"masks": ["causal", "causal"]},
        {"adapters": {"replacement_frequency": 2, "bottleneck": 4}},
        {"collaborative": {"model": "mf", "dimension": 4, "projection": "per_layer"}},
        {"collaborative": {"dimension": 4, "training": "frozen", "pretrain_epochs": 2}},
    ],
    ids=["darec-base", "llmrec", "two-causal", "every-second-layer", "mf-per-layer", "frozen-ncf"],
)
def test_variants_train_by_config_alone(home, warm, tmp_path, model):
    defaults = tiny_run(home).model.model_dump()
    merged = {**defaults, **{k: {**defaults[k], **v} if isinstance(v, dict) else v for k, v in model.items()}}
    result = run(tiny_run(home, model=merged), tmp_path, warm=warm)
    assert result.status == "finished", result.reason


def test_a_frozen_cf_model_does_not_move_after_its_pretraining(home, warm, tmp_path):
    config = tiny_run(home, model={"collaborative": {"dimension": 4, "training": "frozen", "pretrain_epochs": 1}})
    training = Training(config, warm.materials(config), tmp_path, "cpu")
    before = training.model.collaborative.users().clone()
    training.run()
    pretrained = training.model.collaborative.users().clone()
    training.config = config.model_copy(update={"optimization": config.optimization.model_copy(update={"epochs": 4})})
    training.run()
    assert not torch.equal(before, pretrained)
    assert torch.equal(pretrained, training.model.collaborative.users())


def test_a_pretrained_cf_model_goes_on_with_the_rest(home, warm, tmp_path):
    pretrained = {"dimension": 4, "training": "pretrained", "pretrain_epochs": 3}
    config = tiny_run(home, model={"collaborative": pretrained})
    training = Training(config, warm.materials(config), tmp_path / "run", "cpu")
    fresh = training.model.collaborative.users().clone()
    training.task.begin()
    begun = training.model.collaborative.users().clone()
    assert not torch.equal(fresh, begun)
    assert run(config, tmp_path / "whole", warm=warm, keep_model=True).status == "finished"
    trained = restore(config, load_model(tmp_path / "whole" / "model.safetensors"), warm).model.collaborative.users()
    assert not torch.equal(begun, trained)


def test_nothing_of_the_backbone_is_trained_or_saved(home, warm, tmp_path):
    config = tiny_run(home)
    materials = warm.materials(config)
    before = {name: tensor.clone() for name, tensor in materials.backbone.model.state_dict().items()}
    run(config, tmp_path, warm=warm, keep_model=True)
    after = materials.backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(name.startswith("backbone") for name in load_model(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("post_norm", [False, True])
def test_any_opt_folder_is_a_backbone(home, tmp_path, post_norm):
    dataset = Dataset.open(tiny_data(home))
    folder = save_tiny_opt(tmp_path / "opt", dataset.sentences, post_norm)
    result = run(tiny_run(home, model={"backbone": {"name": str(folder)}}), tmp_path / "run")
    assert result.status == "finished", result.reason
