"""What every registered CF model must do; LightGCN's own arithmetic against a dense literal computation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_runs import tiny_run

from trainer.config import CollaborativeConfig, RunConfig
from trainer.data.ragged import Ragged
from trainer.inference import assemble, restore
from trainer.models.collaborative import COLLABORATIVE, create_collaborative
from trainer.models.collaborative.base import CollaborativeModel
from trainer.training.loop import create_model
from trainer.training.model_file import load_model
from trainer.training.pretrain import pretrain_collaborative
from trainer.training.run import run
from trainer.training.warm import Warm

TRAIN = Ragged.from_rows([[0, 1, 1], [1, 2], [3], [0, 2, 4]])
USERS, ITEMS = 5, 7  # the last user and two items have no interaction
PAIRS = (TRAIN.row_of_value, TRAIN.values)


def create(name: str, **options) -> CollaborativeModel:
    torch.manual_seed(0)
    model = create_collaborative(CollaborativeConfig(model=name, dimension=4, **options), USERS, ITEMS, PAIRS)
    assert model is not None
    return model


def batch(model: CollaborativeModel) -> tuple[torch.Tensor, ...]:
    negatives = np.random.default_rng(0).integers(0, ITEMS, (len(TRAIN.values), model.negatives))
    return tuple(torch.from_numpy(array.astype(np.int64)) for array in (*PAIRS, negatives))


@pytest.fixture(params=sorted(COLLABORATIVE))
def name(request):
    return request.param


def test_config_and_registry_name_the_same_models():
    field = CollaborativeConfig.model_fields["model"]
    assert set(field.annotation.__args__) == {*COLLABORATIVE, "none"}


def test_shapes_and_negatives(name):
    model = create(name)
    assert model.users().shape == (USERS, model.representation)
    assert model.items().shape == (ITEMS, model.representation)
    assert model.loss_terms(*batch(model)).shape == (len(TRAIN.values),)
    assert create(name, negatives=3).negatives == 3


def test_loss_falls_and_all_parameters_have_gradients(name):
    model = create(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = model.loss_terms(*batch(model)).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_vectors_take_gradients_beside_the_loss_in_one_step(name):
    """A step reads the vectors for the columns and the loss at once, part after part where a batch is cut in parts."""
    model = create(name)
    whole = model.loss_terms(*batch(model)).sum() + model.users().sum() + model.items().square().sum()
    whole.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    users, items, negatives = batch(model)
    for part in (slice(0, 4), slice(4, None)):
        loss = model.loss_terms(users[part], items[part], negatives[part]).sum()
        (loss + 0.5 * model.users().sum() + 0.5 * model.items().square().sum()).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_pretraining_moves_the_model_and_freezes_it(name, tmp_path):
    model = create(name)
    before = model.users().detach().clone()
    config = RunConfig.model_validate({"data": {"path": "-"}, "model": {"collaborative": {"model": name}}})
    pretrain_collaborative(model, TRAIN, config, "cpu")
    assert not torch.allclose(before, model.users())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.users().requires_grad


@pytest.mark.parametrize("training", ["joint", "frozen"])
def test_a_trained_model_works_without_the_training_part(name, training, tmp_path):
    """What is saved ranks as the model at its best epoch did, restored beside its data and exported without them."""
    section = {"model": name, "dimension": 4, "training": training, "pretrain_epochs": 2}
    base = tiny_run(tmp_path)
    model = base.model.model_dump() | {"collaborative": section}
    config = RunConfig.model_validate(base.model_dump() | {"model": model})
    warm = Warm()
    result = run(config, tmp_path / "run", warm=warm, keep_model=True)
    assert result.status == "finished", result.reason
    state = load_model(tmp_path / "run" / "model.safetensors")
    materials = warm.materials(config)
    trained, dataset = restore(config, state, warm), materials.dataset
    ranks = trained.ranks(dataset, "validation", known_users=True)
    assert float((1 / ranks).mean()) == pytest.approx(result.metrics["mrr"], abs=1e-9)
    backbone = config.model.backbone.model_copy(update={"name": materials.backbone.name})
    exported = assemble(
        config.model.model_copy(update={"backbone": backbone}),
        dataset.sentences,
        state,
        n_users=dataset.n_users,
        max_items=config.data.max_items,
        max_item_tokens=config.data.max_item_tokens,
    )
    histories, users = [dataset.train[0], dataset.train[1]], np.array([0, -1])
    torch.testing.assert_close(exported.scores(histories, users), trained.scores(histories, users))
    initial = create_model(config, materials).collaborative
    assert not torch.equal(initial.users(), trained.model.collaborative.users())


def dense_propagation(table: torch.Tensor, layers: int) -> torch.Tensor:
    """Equations 7 and 8 of the LightGCN paper, entry by entry."""
    owned = [set(row.tolist()) for row in TRAIN] + [set()] * (USERS - len(TRAIN))
    buyers = [{user for user, items in enumerate(owned) if item in items} for item in range(ITEMS)]
    users, items = table[:USERS], table[USERS:]
    sum_users, sum_items = users, items
    zero = torch.zeros(table.shape[1], dtype=table.dtype)
    for _ in range(layers):
        next_users = [
            sum((items[i] / (len(owned[u]) * len(buyers[i])) ** 0.5 for i in owned[u]), zero) for u in range(USERS)
        ]
        next_items = [
            sum((users[u] / (len(owned[u]) * len(buyers[i])) ** 0.5 for u in buyers[i]), zero) for i in range(ITEMS)
        ]
        users, items = torch.stack(next_users), torch.stack(next_items)
        sum_users, sum_items = sum_users + users, sum_items + items
    return torch.cat([sum_users, sum_items]) / (layers + 1)


@pytest.mark.parametrize("layers", [1, 3])
def test_lightgcn_agrees_with_the_literal_computation(layers):
    model = copy.deepcopy(create("lightgcn", propagation_layers=layers)).double()
    users, items, negatives = batch(model)
    table = model.table.weight.detach().clone().requires_grad_()
    dense = dense_propagation(table, layers)
    torch.testing.assert_close(torch.cat([model.users(), model.items()]), dense, rtol=0, atol=1e-7)
    expected = torch.stack(
        [
            -torch.nn.functional.logsigmoid(dense[u] @ dense[USERS + i] - dense[u] @ dense[USERS + j[0]])
            for u, i, j in zip(users, items, negatives, strict=True)
        ]
    )
    found = model.loss_terms(users, items, negatives)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    found.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(model.table.weight.grad, table.grad, rtol=0, atol=1e-7)


def test_lightgcn_propagates_once_for_each_value_of_its_table():
    model = create("lightgcn").eval()
    with torch.no_grad():
        first = model.users()
        assert model.items().untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        model.table.weight.mul_(2)
        torch.testing.assert_close(model.users(), 2 * first)


def test_lightgcn_saves_what_it_propagates_now():
    """Also where it is saved in the middle of training, when nobody has asked for the vectors since the last step."""
    model = create("lightgcn")
    with torch.no_grad():
        model.table.weight.add_(1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restored = create_collaborative(CollaborativeConfig(model="lightgcn", dimension=4), USERS, ITEMS)
    restored.load_state_dict(state)
    torch.testing.assert_close(restored.users(), model.users())
    torch.testing.assert_close(restored.items(), model.items())
    resumed = create("lightgcn")
    resumed.load_state_dict(state)
    torch.testing.assert_close(resumed.users(), model.users())
