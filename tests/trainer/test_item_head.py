"""The item projection in the space of the items' texts."""

import numpy as np
import pytest
import torch
from tiny_runs import tiny_data, tiny_run

from trainer.data.dataset import Dataset
from trainer.errors import BadInput
from trainer.inference import restore
from trainer.metrics import ranking_metrics
from trainer.models.item_head import unit_vectors
from trainer.training.loop import create_model
from trainer.training.model_file import load_model
from trainer.training.run import run
from trainer.training.warm import Warm, check_run

MODEL = {
    "backbone": {"builtin": {"layers": 2, "hidden": 16, "heads": 2, "vocabulary": 320, "steps": 20}},
    "adapters": {"bottleneck": 4},
    "collaborative": {"dimension": 4},
}


def config_of(home, **item_text):
    return tiny_run(home, model={**MODEL, "item_text": {"dimension": 12, **item_text}})


def test_leading_directions_keep_what_is_near():
    """Points along two directions of many; far ones stay far and all lie on the sphere."""
    chance = np.random.default_rng(0)
    flat = chance.normal(size=(50, 2)) * [5, 3]
    vectors = torch.from_numpy(flat @ chance.normal(size=(2, 30)) + 7 + 1e-3 * chance.normal(size=(50, 30))).float()
    found = unit_vectors(vectors, 2)
    centred = vectors - vectors.mean(0)
    cosines = torch.nn.functional.normalize(centred, dim=1) @ torch.nn.functional.normalize(centred, dim=1).T
    torch.testing.assert_close(found @ found.T, cosines, atol=1e-2, rtol=0)
    wide = unit_vectors(vectors[:, :3], 8)
    assert wide.shape == (50, 8)
    assert not wide[:, 3:].any()
    torch.testing.assert_close(wide.norm(dim=1), torch.ones(50))


def test_items_that_read_alike_have_like_vectors_before_training(tmp_path):
    config = config_of(tmp_path, free=False)
    materials = Warm().materials(config)
    model = create_model(config, materials)
    weights = torch.nn.functional.normalize(model.scoring_head().weight.detach(), dim=1)
    like = materials.item_texts @ materials.item_texts.T
    found = np.corrcoef((weights @ weights.T).flatten().numpy(), like.flatten().numpy())[0, 1]
    assert found > 0.6  # as far as 16 numbers tell them


@pytest.mark.parametrize("free", [True, False])
def test_its_model_file_ranks_as_the_run_did(tmp_path, free):
    config = config_of(tmp_path, free=free)
    check_run(config, Warm())
    result = run(config, tmp_path / "run", keep_model=True)
    assert result.status == "finished", result.reason
    state = load_model(tmp_path / "run" / "model.safetensors")
    assert bool(state["item_head.weight"].any()) == free
    ranks = restore(config, state).ranks(Dataset.open(tiny_data(tmp_path)), "validation", known_users=True)
    assert ranking_metrics(ranks)["mrr"] == pytest.approx(result.metrics["mrr"], abs=1e-6)


def test_an_encoder_that_is_not_there_is_refused_before_training(tmp_path):
    with pytest.raises(BadInput, match=r"model.item_text.encoder '.*nowhere': cannot be loaded"):
        check_run(config_of(tmp_path, encoder=str(tmp_path / "nowhere")), Warm())
