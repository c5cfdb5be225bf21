"""How a run is computed changes nothing of what is computed."""

from __future__ import annotations

import os

import pytest
import torch
from tiny_runs import tiny_data, tiny_run

from trainer.data.dataset import Dataset
from trainer.inference import restore
from trainer.metrics import ranking_metrics
from trainer.training.feed import to_device
from trainer.training.loop import Training
from trainer.training.model_file import load_model
from trainer.training.run import run
from trainer.training.warm import Warm


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def warm():
    return Warm()


def curve(result) -> list[dict[str, float]]:
    assert result.status == "finished", result.reason
    return [{name: value for name, value in row.items() if name not in ("time", "seconds")} for row in result.curve]


@pytest.fixture(scope="module")
def plain(home, warm, tmp_path_factory):
    return curve(run(tiny_run(home), tmp_path_factory.mktemp("plain") / "run", warm=warm))


@pytest.mark.parametrize("parts", [3, 40], ids=["some", "more-than-users"])
def test_accumulated_parts_train_what_the_whole_batch_trains(home, warm, plain, tmp_path, parts):
    result = curve(run(tiny_run(home, execution={"accumulation": parts}), tmp_path, warm=warm))
    for one, other in zip(plain, result, strict=True):
        assert other == pytest.approx(one, rel=2e-4)


def test_a_run_draws_nothing_from_torchs_generator(home, warm, tmp_path):
    before = torch.get_rng_state()
    run(tiny_run(home), tmp_path, warm=warm)
    assert torch.equal(before, torch.get_rng_state())


def test_a_step_moves_to_a_device_whole(home, warm):
    config = tiny_run(home)
    training = Training(config, warm.materials(config), home / "unused", "cpu")
    (part, _), *_ = next(training.task.steps(0, 0)).parts
    part = to_device(part, "meta")
    tensors = [value for source in (part, part.streams) for value in vars(source).values() if torch.is_tensor(value)]
    assert len(tensors) > 10
    assert all(tensor.is_meta for tensor in tensors)


def test_bfloat16_learns_what_float32_learns(home, warm, plain, tmp_path):
    config = tiny_run(home, execution={"precision": "bfloat16"})
    result = run(config, tmp_path, warm=warm, keep_model=True)
    assert curve(result)[-1] != plain[-1]
    for one, other in zip(plain, curve(result), strict=True):
        losses = {name: value for name, value in one.items() if name.startswith("loss/")}
        assert {name: other[name] for name in losses} == pytest.approx(losses, rel=1e-2)
    model = warm.materials(config).backbone.model
    assert {parameter.dtype for parameter in model.parameters() if parameter.ndim >= 2} == {torch.bfloat16}
    trained = load_model(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    ranks = restore(config, trained, warm).ranks(Dataset.open(tiny_data(home)), "validation", known_users=True)
    found = ranking_metrics(ranks)
    assert found == pytest.approx({name: result.metrics[name] for name in found}, abs=1e-6)


def test_a_bfloat16_run_leaves_the_backbone_of_other_trials_as_it_is(home, warm, plain, tmp_path):
    run(tiny_run(home, execution={"precision": "bfloat16"}), tmp_path / "half", warm=warm)
    assert curve(run(tiny_run(home), tmp_path / "full", warm=warm)) == plain


def test_deterministic_mode_lasts_as_long_as_the_run(home, warm, plain, tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    during = []

    def look(row):
        during.append((torch.are_deterministic_algorithms_enabled(), os.environ["CUBLAS_WORKSPACE_CONFIG"]))
        raise KeyboardInterrupt

    config = tiny_run(home, execution={"deterministic": True})
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, warm=warm, on_row=look)
    assert during == [(True, ":4096:8")]
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert curve(run(config, tmp_path, warm=warm)) == plain


def test_one_worker_has_nobody_to_spread_its_backbone_over(home, warm, plain, tmp_path, caplog):
    caplog.set_level("INFO", logger="trainer")
    config = tiny_run(home, execution={"shard_backbone": True})
    assert curve(run(config, tmp_path, warm=warm)) == plain
    assert "execution.shard_backbone has no effect" in caplog.text
