"""How a run is computed changes nothing of what is computed."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import tiny_run

from trainer.training.feed import to_device
from trainer.training.loop import Training
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
    part = to_device(next(training._steps()).parts[0], "meta")
    tensors = [value for source in (part, part.streams) for value in vars(source).values() if torch.is_tensor(value)]
    assert len(tensors) > 10
    assert all(tensor.is_meta for tensor in tensors)
