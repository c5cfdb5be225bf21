import math
from collections import Counter

import numpy as np
import pytest
import torch
from shops import shop_of

from trainer.baselines import REFERENCES, evaluate
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.data.text import tfidf


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
        reciprocal = []
        for user in range(part.n_users):
            scores = fitted.score([inputs[user]])[0].tolist()
            target = scores[targets[user]]
            higher, ties = sum(s > target for s in scores), sum(s == target for s in scores) - 1
            reciprocal.append(1 / (1 + higher + ties / 2))
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
