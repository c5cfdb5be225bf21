"""The moving average of the weights, alone and in a run."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from tiny_runs import tiny_data, tiny_run

from trainer.data.dataset import Dataset
from trainer.inference import restore
from trainer.training.averaging import WeightAverage
from trainer.training.evaluation import validation_metrics
from trainer.training.model_file import load_model
from trainer.training.run import run
from trainer.training.warm import Warm


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def test_the_average_follows_its_formula_and_weighs_early_steps_less():
    weight = torch.zeros(2, requires_grad=True)
    average, expected = WeightAverage([weight], decay=0.5), 0.0
    for step, value in enumerate([1.0, 3.0, -2.0, 8.0, 8.0, 1.0], 1):
        with torch.no_grad():
            weight.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.tensors[0].tolist() == pytest.approx([expected] * 2)


def test_the_average_is_applied_for_a_while_and_the_weights_come_back():
    weight = torch.tensor([4.0], requires_grad=True)
    average = WeightAverage([weight], decay=0.9)
    with torch.no_grad():
        weight.fill_(0.0)
    seen = []
    with suppress(RuntimeError), average.applied():
        seen.append(weight.item())
        raise RuntimeError("midway")
    assert [*seen, weight.item()] == [4.0, 0.0]
    assert average.tensors[0].item() == 4.0


def test_a_run_is_judged_by_the_averaged_weights_and_keeps_them(home, tmp_path):
    warm, config = Warm(), tiny_run(home, optimization={"ema_decay": 0.8})
    result = run(config, tmp_path, warm=warm, keep_model=True)
    plain = run(tiny_run(home), tmp_path / "plain", warm=warm)
    # The training is the same; what is judged is not.
    assert [row["loss/total"] for row in result.curve] == [row["loss/total"] for row in plain.curve]
    assert result.metrics != plain.metrics
    trained = restore(config, load_model(tmp_path / "model.safetensors"), warm)
    ranks = trained.ranks(Dataset.open(tiny_data(home)), "validation", known_users=True)
    assert float((1 / ranks).mean()) == pytest.approx(result.metrics["mrr"], abs=1e-6)


def test_metrics_without_likelihoods_are_refused(home):
    config = tiny_run(home)
    with pytest.raises(ValueError, match="without likelihoods"):
        validation_metrics(untrained(config).rank(Dataset.open(tiny_data(home)), "validation", known_users=True))


def untrained(config):
    from trainer.training.loop import create_model

    warm = Warm()
    return restore(config, create_model(config, warm.materials(config)).trained_state(), warm)


def test_all_users_judge_a_run_that_trains_on_some(home, tmp_path):
    warm = Warm()
    some = {"users_fraction": 0.4, "path": str(tiny_data(home)), "max_items": 8, "max_item_tokens": 8}
    config = tiny_run(home, data={**some, "validation_users": "all"})
    materials, dataset = warm.materials(config), Dataset.open(tiny_data(home))
    assert len(materials.validation.targets) == dataset.n_users
    known = materials.validation.users >= 0
    assert sorted(materials.validation.users[known]) == list(range(materials.dataset.n_users))
    assert (dataset.user_index[known] == materials.dataset.user_index).all()
    judged_by_all = run(config, tmp_path / "all", warm=warm)
    judged_by_its_own = run(tiny_run(home, data=some), tmp_path / "own", warm=warm)
    losses = [[row["loss/total"] for row in result.curve] for result in (judged_by_all, judged_by_its_own)]
    assert losses[0] == losses[1]
    assert judged_by_all.metrics != judged_by_its_own.metrics
