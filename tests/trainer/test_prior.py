"""The prior from counts, against its definition one pair at a time."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from shops import shop_of
from tiny_runs import tiny_run

from trainer import softmax
from trainer.config import PriorConfig
from trainer.counting import PriorCounter
from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged
from trainer.data.relations import Relations, item_relations, relate
from trainer.data.text import tfidf
from trainer.errors import BadInput
from trainer.inference import assemble, restore
from trainer.models.padded_prior import PaddedPrior
from trainer.models.prior import Prior
from trainer.softmax import RowLogits, item_cross_entropy
from trainer.training.loop import Training, create_model, create_task
from trainer.training.model_file import load_model
from trainer.training.run import run
from trainer.training.warm import Warm
from trainer.training.workers import Workers

BASKETS = {
    "u1": "abcdefabg",
    "u2": "bcabhd",
    "u3": "cadbeg",
    "u4": "aabdcfh",
    "u5": "ghabcd",
    "u6": "hgfedcba",
    "u7": "bdfhacge",
}
TITLES = {letter: f"word{index % 3} word{index % 2} thing" for index, letter in enumerate("abcdefgh")}
CONFIG = PriorConfig(decay=0.6, gap=2, partners=100)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Dataset:
    return shop_of(tmp_path_factory.mktemp("prior"), BASKETS, TITLES, min_item_interactions=1)


@pytest.fixture(scope="module")
def prior(shop) -> Prior:
    found = Prior(CONFIG, relate(shop, CONFIG).frequency)
    with torch.no_grad():
        found.weights += torch.tensor([0.1, -0.4, 0.3, 0.2, -1.3, 0.7])
        found.log_sharpness += torch.tensor([0.5, -1.0, 0.2])
    return found


def follows(rows: list[list[int]], before: int, after: int, gap: int) -> float:
    return sum(
        1 / apart
        for row in rows
        for place, item in enumerate(row)
        for apart in range(1, gap + 1)
        if item == before and place + apart < len(row) and row[place + apart] == after
    )


def literal(shop: Dataset, prior: Prior, history: list[int], without: int | None) -> list[float]:
    """The definition; `without` is the user in hand."""
    everyone = [row.tolist() for row in shop.train]
    others = [row for user, row in enumerate(everyone) if user != without]
    n_i, n_j = (Counter(item for row in rows for item in row) for rows in (everyone, others))
    words = tfidf(list(shop.sentences))  # of a shop with titles alone
    alike = (words @ words.T).toarray()
    w, k = prior.weights.tolist(), prior.log_sharpness.exp().tolist()
    logits = []
    for j in range(shop.n_items):
        logit = w[3] * math.log(1 + n_j[j])
        if j in history:
            logits.append(logit + w[4] + w[5] * (j == history[-1]))
            continue
        x = [0.0, 0.0, 0.0]
        for age, i in enumerate(reversed(history)):
            scale = CONFIG.decay**age / math.sqrt((n_i[i] + 1) * (n_j[j] + 1))
            x[0] += scale * sum(i in row and j in row for row in others)
            x[1] += scale * follows(others, i, j, CONFIG.gap)
            x[2] += CONFIG.decay**age * alike[i, j]
        logits.append(logit + sum(w[s] * math.log(1 + k[s] * x[s]) for s in range(3)))
    return logits


def test_histories_against_the_definition(shop, prior):
    histories = [[0], [3, 1, 2], [5, 5, 0, 5], list(shop.train[0])]
    given = PriorCounter(relate(shop, CONFIG), CONFIG).of_histories(Ragged.from_rows(histories))
    expected = torch.tensor([literal(shop, prior, list(map(int, history)), None) for history in histories])
    torch.testing.assert_close(prior(given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_prefixes_against_the_definition(shop, prior, leave_one_out):
    config = CONFIG.model_copy(update={"leave_one_out": leave_one_out})
    users = np.array([4, 0, 3])
    rows = [shop.train[user][-5:] for user in users]  # of user 0, whose items come again, the newest
    inputs = np.concatenate([row[:-1] for row in rows]).astype(np.int64)
    lengths = np.array([len(row) - 1 for row in rows])
    given = PriorCounter(relate(shop, config), config, shop.train).of_prefixes(users, lengths, inputs)
    expected = [
        literal(shop, prior, row[: place + 1].tolist(), int(user) if leave_one_out else None)
        for user, row in zip(users, rows, strict=True)
        for place in range(len(row) - 1)
    ]
    assert len(given) == len(expected)
    torch.testing.assert_close(prior(given), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prior(given, 2, 5), torch.tensor(expected[2:5]), rtol=1e-5, atol=1e-5)


def test_as_padded_tensors_it_is_the_same(shop, prior):
    """What ONNX gets of it, with histories of several lengths and items that come twice."""
    n_items = shop.n_items
    rows = [[0], [3, 1, 2], [5, 5, 0, 5], list(map(int, shop.train[0]))]
    histories, longest = Ragged.from_rows(rows), max(map(len, rows))
    counter = PriorCounter(relate(shop, CONFIG), CONFIG)
    filled = [[n_items] * (longest - len(row)) + row for row in rows]
    with torch.no_grad():
        found = PaddedPrior(prior, counter.partners())(torch.tensor(filled))
        expected = prior(counter.of_histories(histories))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_user_does_not_meet_itself(tmp_path):
    """What only this user has bought together says nothing about its own next item."""
    shop = shop_of(tmp_path, {"u1": "abxyz", "u2": "cdexy", "u3": "ecdyx", "u4": "dxecy"}, min_item_interactions=1)
    user = int(np.flatnonzero([shop.item_ids[row[0]] == "a" for row in shop.train])[0])
    a, b = (list(shop.item_ids).index(name) for name in "ab")
    found = {}
    for leave_one_out in (True, False):
        config = PriorConfig(leave_one_out=leave_one_out)
        counter = PriorCounter(relate(shop, config), config, shop.train)
        given = counter.of_prefixes(np.array([user]), np.array([1]), np.array([a]))
        found[leave_one_out] = b in given.together.places.tolist()
    assert found == {True: False, False: True}


def test_only_the_strongest_partners_are_kept(shop):
    few = relate(shop, CONFIG.model_copy(update={"partners": 2}))
    whole = relate(shop, CONFIG)
    scaled = whole.together.toarray() / np.sqrt(whole.frequency + 1)
    for item in range(shop.n_items):
        kept = few.together[item].indices
        assert len(kept) == min(2, (scaled[item] > 0).sum())
        assert scaled[item][kept].min() >= np.delete(scaled[item], kept).max()


def test_relations_see_the_training_part_alone(tmp_path):
    changed = {user: items[:-2] + items[-1] + items[-2] for user, items in BASKETS.items()}
    one, other = (
        relate(shop_of(tmp_path / name, baskets, TITLES, min_item_interactions=1), CONFIG)
        for name, baskets in (("one", BASKETS), ("other", changed))
    )
    assert (one.together != other.together).nnz == 0
    assert (one.next != other.next).nnz == 0


def test_relations_are_found_again_and_a_damaged_file_is_named(shop, tmp_path):
    built, found = (item_relations(shop, CONFIG, tmp_path / "cache") for _ in range(2))
    assert (built.next != found.next).nnz == 0
    assert (built.frequency == found.frequency).all()
    file = tmp_path / "relations.safetensors"
    found.save(file)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(BadInput, match="relations"):
        Relations.load(file)


@pytest.mark.parametrize("logits_at_a_time", [1, 3 * 8, 10**9])
def test_the_loss_has_the_gradients_of_the_dense_one(shop, monkeypatch, logits_at_a_time):
    monkeypatch.setattr(softmax, "_LOGITS_AT_A_TIME", logits_at_a_time)
    torch.manual_seed(0)
    counter = PriorCounter(relate(shop, CONFIG), CONFIG)
    given = counter.of_histories(Ragged.from_rows([[0, 1], [2], [3, 4, 5], [6]]))
    prior, head = Prior(CONFIG, relate(shop, CONFIG).frequency), torch.nn.Linear(5, shop.n_items)
    states, targets, weights = torch.randn(6, 5, requires_grad=True), torch.tensor([3, 1, 0, 2, 7, 5]), torch.rand(6)
    trained = [states, *head.parameters(), *prior.parameters()]
    added = RowLogits(4, lambda start, stop: prior(given, start, stop), tuple(prior.parameters()))
    total, losses = item_cross_entropy(states, head, targets, weights, added)
    logits = head(states) + torch.cat([prior(given), torch.zeros(2, shop.n_items)])
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(losses, expected.detach())
    for own, other in zip(
        torch.autograd.grad(2 * total, trained),
        torch.autograd.grad(2 * (expected * weights).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(own, other)
        assert own.abs().sum() > 0


def test_a_sampled_softmax_is_refused(tmp_path):
    with pytest.raises(ValidationError, match=r"losses\n.*model.prior counts over all items"):
        tiny_run(tmp_path, model={"prior": {}}, losses={"sampled_items": 10})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with a prior: its folder, config and model."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_run(folder, model={**tiny_run(folder).model.model_dump(), "prior": {"fit_steps": 20}})
    warm = Warm()
    result = run(config, folder / "run", warm=warm, keep_model=True)
    assert result.status == "finished", result.reason
    return config, warm, result, load_model(folder / "run" / "model.safetensors")


def test_a_run_ranks_by_model_and_prior(trained):
    config, warm, result, state = trained
    found = restore(config, state, warm)
    dataset = warm.materials(config).dataset
    ranks = found.ranks(dataset, "validation", known_users=True)
    assert float((1 / ranks).mean()) == pytest.approx(result.metrics["mrr"], rel=1e-5)
    users = np.arange(dataset.n_users)
    scores = found.scores([row.astype(np.int64) for row in dataset.train], users)
    own = scores.gather(1, torch.from_numpy(dataset.validation.astype(np.int64))[:, None])
    higher, ties = (scores > own).sum(1), (scores == own).sum(1) - 1
    torch.testing.assert_close(1 + higher + ties / 2, ranks.float(), rtol=0, atol=1)
    best, items = found.best([dataset.train[0].astype(np.int64)], 5, users[:1])
    torch.testing.assert_close(best[0], scores[0][items[0]])
    assert torch.equal(best[0], best[0].sort(descending=True).values)


def test_the_prior_is_trained_with_the_rest(trained):
    config, warm, _, state = trained
    fitted = create_model(config, warm.materials(config)).prior
    assert set(fitted.state_dict()) == {"weights", "log_sharpness"}  # the counts stay out of checkpoints
    for name, tensor in fitted.named_parameters():
        assert not torch.equal(tensor, state[f"prior.{name}"])


def test_relations_in_a_file_give_the_same_scores(trained, tmp_path):
    config, warm, _, state = trained
    materials = warm.materials(config)
    materials.relations.save(tmp_path / "relations.safetensors")
    backbone = config.model.backbone.model_copy(update={"name": materials.backbone.name})
    sizes = {"n_users": materials.dataset.n_users, "max_items": 8, "max_item_tokens": 8}
    carried = partial(
        assemble,
        config.model.model_copy(update={"backbone": backbone}),
        list(materials.dataset.sentences),
        state,
        **sizes,
    )
    histories = [np.array([3, 1]), np.array([7])]
    found = carried(relations=Relations.load(tmp_path / "relations.safetensors"))
    torch.testing.assert_close(found.scores(histories), restore(config, state, warm).scores(histories))
    with pytest.raises(BadInput, match="counts"):
        carried()
    padded = found.padded_scores()(torch.tensor([[3, 1], [-1, 7]]), torch.tensor([-1, -1]))
    torch.testing.assert_close(padded, found.scores(histories), atol=1e-5, rtol=1e-5)


def test_a_killed_run_goes_on_as_if_it_had_not_been(trained, tmp_path):
    config, warm, _, state = trained
    training = Training(config, warm.of(config), tmp_path, "cpu")
    next(training.epochs())
    resumed = Training(config, warm.of(config), tmp_path, "cpu")
    resumed.run()
    assert resumed.progress.epoch == config.optimization.epochs
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.best.items())


def test_two_workers_see_what_one_does(trained):
    config, warm, _, _ = trained
    materials = warm.materials(config)
    task = create_task(config, materials, "cpu", Workers(0, 1))
    ((whole, _),) = next(task.steps(0, 0)).parts
    parts = [next(create_task(config, materials, "cpu", Workers(rank, 2)).steps(0, 0)).parts[0][0] for rank in range(2)]
    total = task.losses(whole)["total"]
    torch.testing.assert_close(sum(task.losses(part)["total"] for part in parts), total)


def test_dropout_in_front_of_the_head_follows_from_the_batch(trained):
    config, warm, _, _ = trained
    config = config.model_copy(update={"model": config.model.model_copy(update={"head_dropout": 0.5})})
    task = create_task(config, warm.materials(config), "cpu", Workers(0, 1))
    totals = []
    for _ in range(2):
        ((part, _),) = next(task.steps(0, 0)).parts
        totals.append(task.losses(part)["total"])
    task.model.eval()
    assert totals[0] == totals[1] != task.losses(part)["total"]
