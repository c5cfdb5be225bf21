import math
from collections import Counter

import numpy as np
import pytest
import torch
from shops import shop_of
from tiny_runs import tiny_run

from trainer.baselines import REFERENCES, evaluate, ranked_by, reference_ranks
from trainer.config import BaselineConfig
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.data.text import tfidf
from trainer.inference import restore_baseline
from trainer.metrics import ranking_metrics
from trainer.training.model_file import load_model
from trainer.training.run import run
from trainer.training.warm import Warm, check_run


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("references") / "data"
    prepare("synthetic", None, folder, users=80, items=100, seed=3)
    return Dataset.open(folder)


def literal_neighbours(data: Dataset, history: list[int]) -> list[float]:
    """The definition, one pair at a time."""
    interactions = Counter(data.train.values.tolist())
    baskets = [set(row.tolist()) for row in data.train]
    texts = zip(*(data.attributes[name] for name in ("title", "categories", "brand")), strict=True)
    words = tfidf([" ".join(text) for text in texts]).toarray()
    scores = []
    for candidate in range(data.n_items):
        score = 0.0
        for age, item in enumerate(reversed(history)):
            both = sum(item in basket and candidate in basket for basket in baskets)
            cosine = both / math.sqrt((interactions[item] + 1) * (interactions[candidate] + 1))
            score += 2.0**-age * ((cosine if item != candidate else 0.0) + 0.3 * float(words[item] @ words[candidate]))
        scores.append(score)
    return scores


def test_neighbours_against_the_definition(shop):
    fitted = REFERENCES["neighbours"].fit(shop)
    histories = [shop.train[0], shop.inputs("test")[5], np.array([3, 8, 3], np.int32), np.array([], np.int32)]
    scores = fitted.score(histories)
    assert scores.shape == (4, shop.n_items)
    for row, history in zip(scores, histories, strict=True):
        torch.testing.assert_close(
            row.double().tolist(), literal_neighbours(shop, history.tolist()), rtol=1e-5, atol=1e-6
        )


def test_neighbours_needs_no_brand_nor_shared_words(tmp_path):
    titles = {letter: letter * 3 for letter in "abcde"}
    data = shop_of(tmp_path, {"u1": "abcde", "u2": "bcdea", "u3": "cdeab", "u4": "deabc"}, titles)
    scores = REFERENCES["neighbours"].fit(data).score([np.array([0], np.int32)])
    assert scores[0, 0] == 0
    assert scores[0, 1:].max() > 0


def test_popularity_counts_the_training_part(tmp_path):
    data = shop_of(tmp_path, {"u1": "aabcd", "u2": "abdcc", "u3": "aacdd", "u4": "abdcc"}, min_item_interactions=1)
    scores = REFERENCES["popularity"].fit(data).score([data.train[0], data.train[1]])
    assert scores.tolist() == [[6, 3, 1, 2]] * 2


@pytest.mark.parametrize("name", REFERENCES)
def test_contract(shop, name):
    """What every reference keeps: training part only, subsets, evaluation equal to ranking one user at a time."""
    part = shop.unsealed("test").subset(0.5, 0)
    fitted = REFERENCES[name].fit(part)
    for split in ("validation", "test"):
        inputs, targets = part.inputs(split), part.targets(split)
        reciprocal, without_seen = [], []
        for user in range(part.n_users):
            scores = fitted.score([inputs[user]])[0].tolist()
            target = scores[targets[user]]
            higher, ties = sum(s > target for s in scores), sum(s == target for s in scores) - 1
            reciprocal.append(1 / (1 + higher + ties / 2))
            rest = [s for item, s in enumerate(scores) if item not in inputs[user] or item == targets[user]]
            without_seen.append(1 + sum(s > target for s in rest) + (rest.count(target) - 1) / 2)
        assert reference_ranks(fitted, part, split, exclude_seen=True).tolist() == without_seen
        metrics = evaluate(fitted, part, split)
        assert metrics["mrr"] == pytest.approx(np.mean(reciprocal), rel=1e-5)
        assert set(metrics) == {"mrr", "recall@10", "ndcg@10"}


@pytest.mark.parametrize("name", REFERENCES)
def test_held_out_items_are_not_counted(tmp_path, name):
    ring = {f"u{start}": ("abcdefgh" * 2)[start : start + 5] for start in range(8)}
    changed = {user: items[:3] + items[4] + items[3] for user, items in ring.items()}
    one, other = shop_of(tmp_path / "1", ring), shop_of(tmp_path / "2", changed)
    history = [np.array([0, 1], np.int32)]
    assert torch.equal(REFERENCES[name].fit(one).score(history), REFERENCES[name].fit(other).score(history))


def test_many_users_are_scored_in_parts(shop, monkeypatch):
    fitted = REFERENCES["neighbours"].fit(shop)
    whole = evaluate(fitted, shop, "validation")
    monkeypatch.setattr("trainer.baselines.base._USERS_AT_A_TIME", 7)
    assert evaluate(fitted, shop, "validation") == pytest.approx(whole)


def literal_itemknn(data: Dataset, history: list[int], nearest: int) -> list[float]:
    """The definition, one pair at a time."""
    rows = [Counter(row.tolist()) for row in data.train]
    vectors = [[row[item] for row in rows] for item in range(data.n_items)]

    def cosine(one: int, other: int) -> float:
        dot = sum(a * b for a, b in zip(vectors[one], vectors[other], strict=True))
        return dot / (math.hypot(*vectors[one]) * math.hypot(*vectors[other]) + 1e-6) if one != other else 0.0

    scores = []
    for candidate in range(data.n_items):
        near = sorted(range(data.n_items), key=lambda item: (-cosine(item, candidate), item))[:nearest]
        scores.append(sum(cosine(item, candidate) for item in history if item in near))
    return scores


def test_itemknn_against_the_definition(shop, monkeypatch):
    monkeypatch.setattr("trainer.baselines.itemknn.NEAREST", 7)
    fitted = REFERENCES["itemknn"].fit(shop)
    histories = [shop.train[0], shop.inputs("test")[5], np.array([3, 8, 3], np.int32), np.array([], np.int32)]
    for row, history in zip(fitted.score(histories), histories, strict=True):
        np.testing.assert_allclose(row.numpy(), literal_itemknn(shop, history.tolist(), 7), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_run_counts_once_and_is_measured_by_counting_again(tmp_path, name):
    config = tiny_run(tmp_path).model_copy(update={"baseline": BaselineConfig(name=name)})
    check_run(config, Warm())
    result = run(config, tmp_path / "run", keep_model=True)
    assert result.status == "finished", result.reason
    assert len(result.curve) == 1
    dataset = Dataset.open(config.data.path)
    expected = evaluate(REFERENCES[name].fit(dataset), dataset, "validation")
    assert {metric: result.metrics[metric] for metric in expected} == expected
    restored = restore_baseline(config, load_model(tmp_path / "run" / "model.safetensors"), dataset)
    assert ranking_metrics(restored.ranks(dataset, "validation")) == expected


def test_likelihoods_of_a_reference_are_a_softmax_of_its_scores(shop):
    fitted = REFERENCES["popularity"].fit(shop)
    _, likelihoods = ranked_by(fitted, shop.train, shop.validation)
    counts = fitted.counts.double()
    expected = counts[torch.from_numpy(shop.validation).long()] - counts.exp().sum().log()
    torch.testing.assert_close(likelihoods, expected, atol=1e-5, rtol=1e-6)
