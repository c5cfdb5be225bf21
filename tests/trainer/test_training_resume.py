"""A run that was killed goes on bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_data, tiny_run

from trainer.config import RunConfig
from trainer.training.loop import Training
from trainer.training.model_file import load_model
from trainer.training.run import run
from trainer.training.warm import Warm

EPOCHS, STEPS_PER_EPOCH = 3, 10


class Killed(BaseException):
    """Stands for the process's end in the middle of a run."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny_data(folder, users=60, items=80)
    return folder


@pytest.fixture(scope="module")
def warm():
    return Warm()


def config_of(home: Path, every: int | None = 3, **sections) -> RunConfig:
    optimization = {"epochs": EPOCHS, "batch_size": 6, "learning_rate": 3e-3}
    return tiny_run(home, **{"optimization": optimization, "execution": {"checkpoint_steps": every}, **sections})


def train(config: RunConfig, warm: Warm, folder: Path, kill_at: int | None = None) -> Training:
    """Train; the process ends while step `kill_at` of this attempt is applied."""
    training = Training(config, warm.of(config), folder, "cpu")
    taken = []

    def count(*_: object) -> None:
        taken.append(1)
        if len(taken) == kill_at:
            raise Killed

    training.optimizer.register_step_post_hook(count)
    training.run()
    return training


def outcome(training: Training) -> tuple:
    """Everything that a run leaves behind but the clock."""
    curve = [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in training.progress.curve]
    state = {name: tensor.tolist() for name, tensor in training.model.trained_state().items()}
    best = {name: tensor.tolist() for name, tensor in training.best.items()}
    moments = {
        (index, name): moment.tolist()
        for index, moments in training.optimizer.state_dict()["state"].items()
        for name, moment in moments.items()
    }
    return curve, state, best, moments, training.progress.best_epoch


@pytest.fixture(scope="module")
def whole(home, warm, tmp_path_factory):
    return outcome(train(config_of(home), warm, tmp_path_factory.mktemp("whole")))


def killed_at(*steps: int) -> Callable[[RunConfig, Warm, Path], None]:
    def attempt(config: RunConfig, warm: Warm, folder: Path) -> None:
        for step in steps:
            with pytest.raises(Killed):
                train(config, warm, folder, kill_at=step)

    return attempt


_RANDOM = random.Random(7)


@pytest.mark.parametrize("steps", [(1,), (10,), (13,), (4, 2, 9), tuple(_RANDOM.sample(range(1, 9), 3))], ids=str)
def test_a_run_killed_at_any_step_ends_as_if_it_had_not_been(home, warm, whole, tmp_path, steps):
    killed_at(*steps)(config_of(home), warm, tmp_path)
    resumed = train(config_of(home), warm, tmp_path)
    assert outcome(resumed) == whole
    assert resumed.progress.step == EPOCHS * STEPS_PER_EPOCH


def test_a_killed_run_goes_on_with_its_average(home, warm, tmp_path):
    config = config_of(home, optimization={**config_of(home).optimization.model_dump(), "ema_decay": 0.9})
    whole = outcome(train(config, warm, tmp_path / "whole"))
    killed_at(5)(config, warm, tmp_path / "killed")
    assert outcome(train(config, warm, tmp_path / "killed")) == whole


def test_where_checkpoints_stand_changes_nothing(home, warm, whole, tmp_path):
    assert outcome(train(config_of(home, every=None), warm, tmp_path)) == whole


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoint").iterdir())


def test_only_the_newest_checkpoint_and_the_best_state_are_kept(home, warm, tmp_path):
    (tmp_path / "checkpoint" / ".writing-lost").mkdir(parents=True)
    killed_at(8)(config_of(home), warm, tmp_path)
    assert checkpoints(tmp_path) == ["epoch-00000-step-0000006"]
    killed_at(9)(config_of(home), warm, tmp_path)
    assert checkpoints(tmp_path) == ["best-00001.safetensors", "epoch-00001-step-0000003"]
    best = tmp_path / "checkpoint" / "best-00001.safetensors"
    written = best.stat().st_mtime_ns
    killed_at(6)(config_of(home), warm, tmp_path)
    assert checkpoints(tmp_path) == ["best-00001.safetensors", "epoch-00001-step-0000006"]
    assert best.stat().st_mtime_ns == written


def test_a_checkpoint_holds_trained_tensors_only(home, warm, tmp_path):
    killed_at(15)(config_of(home), warm, tmp_path)
    (folder,) = (tmp_path / "checkpoint").glob("epoch-*")
    state = load_model(folder / "model.safetensors")
    training = Training(config_of(home), warm.materials(config_of(home)), tmp_path / "other", "cpu")
    assert set(state) == set(training.model.trained_state())
    trained = sum(tensor.numel() for tensor in state.values()) * 4
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoint").rglob("*") if file.is_file())
    # Weights, two moments, best weights; then names and the progress.
    assert size < 4 * trained + 30_000


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("model.safetensors", flip_a_bit),
        ("optimizer.safetensors", shorten),
        ("optimizer.safetensors", Path.unlink),
        ("progress.json", shorten),
        ("best-*.safetensors", flip_a_bit),
    ],
    ids=["model-bit", "optimizer-short", "optimizer-gone", "progress-short", "best-bit"],
)
def test_a_damaged_checkpoint_is_recomputed_not_trusted(home, warm, whole, tmp_path, caplog, part, damage):
    killed_at(15)(config_of(home), warm, tmp_path)
    (file,) = (tmp_path / "checkpoint").rglob(part)
    damage(file)
    resumed = train(config_of(home), warm, tmp_path)
    assert "is not usable" in caplog.text
    assert outcome(resumed) == whole


def test_a_checkpoint_of_another_model_is_left_aside(home, warm, tmp_path):
    killed_at(15)(config_of(home), warm, tmp_path)
    config = config_of(home, model={"adapters": {"bottleneck": 7}})
    fresh = Training(config, warm.materials(config), tmp_path, "cpu")
    before = {name: tensor.clone() for name, tensor in fresh.model.trained_state().items()}
    assert fresh.checkpoints.restore(fresh.workers, "cpu") is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.model.trained_state().items())


def test_a_frozen_cf_model_is_not_pretrained_again(home, warm, tmp_path):
    model = {**tiny_run(home).model.model_dump(), "collaborative": {"dimension": 4, "training": "frozen"}}
    config = config_of(home, model=model)
    expected = outcome(train(config, warm, tmp_path / "whole"))
    killed_at(5)(config, warm, tmp_path / "killed")
    assert outcome(train(config, warm, tmp_path / "killed")) == expected


def test_the_cost_counts_all_attempts(home, warm, tmp_path):
    killed_at(25)(config_of(home), warm, tmp_path)
    result = run(config_of(home), tmp_path, warm=warm, attempts=2)
    assert [row["epoch"] for row in result.curve] == [1, 2, 3]
    assert result.cost.wall_s > result.cost.ended_at - result.cost.started_at
    assert not (tmp_path / "checkpoint").exists()


def test_patience_stops_early_and_keeps_the_best_weights(home, warm, tmp_path):
    optimization = {"epochs": 40, "batch_size": 6, "learning_rate": 2e-2, "patience": 2}
    config = config_of(home, optimization=optimization)
    result = run(config, tmp_path, warm=warm, keep_model=True)
    best = max(result.curve, key=lambda row: row["mrr"])
    assert len(result.curve) < 40
    assert len(result.curve) == best["epoch"] + 2
    assert result.best_epoch == best["epoch"]
    # The kept weights are those of a run that ends at the best epoch; its schedule is the longer run's.
    shorter = Training(config, warm.materials(config), tmp_path / "again", "cpu")
    while shorter.progress.epoch < best["epoch"]:
        shorter._train_epoch()
    kept = load_model(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in shorter.model.trained_state().items())
