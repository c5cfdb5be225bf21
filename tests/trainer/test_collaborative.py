"""What every registered CF model must do; LightGCN against its literal reference."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from reference.collaborative import LightGCN
from tiny_runs import tiny_run

from trainer.config import CollaborativeConfig, RunConfig
from trainer.data.ragged import Ragged
from trainer.inference import assemble, restore
from trainer.models.collaborative import COLLABORATIVE, create_collaborative
from trainer.models.collaborative.base import CollaborativeModel
from trainer.models.collaborative.fold_in import FoldIn
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


@pytest.mark.parametrize("training", ["frozen", "pretrained"])
def test_pretraining_moves_the_model_and_freezes_it_unless_it_goes_on(name, training):
    model = create(name)
    before = model.users().detach().clone()
    collaborative = {"model": name, "training": training}
    config = RunConfig.model_validate({"data": {"path": "-"}, "model": {"collaborative": collaborative}})
    pretrain_collaborative(model, TRAIN, config, "cpu")
    assert not torch.allclose(before, model.users())
    assert {parameter.requires_grad for parameter in model.parameters()} == {training == "pretrained"}
    assert model.users().requires_grad == (training == "pretrained")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder whose dataset, backbone and tokens are made once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("training", ["joint", "frozen"])
def test_a_trained_model_works_without_the_training_part(name, training, home, tmp_path):
    """What is saved ranks as the model at its best epoch did, restored beside its data and exported without them."""
    section = {"model": name, "dimension": 4, "training": training, "pretrain_epochs": 2}
    base = tiny_run(home)
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


@pytest.mark.parametrize("layers", [1, 3])
def test_lightgcn_agrees_with_the_literal_computation(layers):
    model = copy.deepcopy(create("lightgcn", propagation_layers=layers)).double()
    table = model.table.weight.detach().clone().requires_grad_()
    histories = [*(row.tolist() for row in TRAIN), []]
    literal = LightGCN({"collaborative.table.weight": table}, histories, layers)
    torch.testing.assert_close(model.users(), literal.users(), rtol=0, atol=1e-7)
    torch.testing.assert_close(model.items(), literal.items(), rtol=0, atol=1e-7)
    found = model.loss_terms(*batch(model))
    triples = zip(*(tensor.tolist() for tensor in batch(model)), strict=True)
    expected = torch.stack([literal.term(user, item, negatives) for user, item, negatives in triples])
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


def test_the_fold_in_finds_vectors_that_follow_from_histories():
    """Users who are the mean of their items, moved and turned, are found again from their items alone."""
    rng = np.random.default_rng(0)
    items = torch.from_numpy(rng.normal(size=(40, 3))).float()
    turn = torch.from_numpy(rng.normal(size=(3, 3))).float()
    lengths = rng.integers(1, 9, 300)
    values = rng.integers(0, 40, lengths.sum())
    means = torch.stack([items[torch.from_numpy(part)].mean(0) for part in np.split(values, np.cumsum(lengths)[:-1])])
    users = means @ turn + 5
    fitted = FoldIn.fit(items, values[: lengths[:200].sum()], lengths[:200], users[:200])
    found = fitted.vectors(items, values[lengths[:200].sum() :], lengths[200:])
    error = (found - users[200:]).square().mean().sqrt()
    assert error < 0.05 * (users - users.mean(0)).square().mean().sqrt()
