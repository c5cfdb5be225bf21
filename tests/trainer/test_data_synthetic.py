from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.data.sources.synthetic import BRANDS, CUES, NOUNS, SyntheticOptions, Truth, item_name
from trainer.errors import BadInput
from trainer.metrics import ranking_metrics, ranks


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    prepare("synthetic", None, folder)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.plant(SyntheticOptions())


def oracle_mrr(shop: Dataset, truth: Truth, cues, newest: int = 10**6) -> float:
    place = {item_name(index): index for index in range(len(truth.titles))}
    catalogue = np.array([place[name] for name in shop.item_ids])
    scores = [truth.oracle(catalogue[history][-newest:].tolist(), cues)[catalogue] for history in shop.train]
    return ranking_metrics(ranks(torch.from_numpy(np.stack(scores)), torch.from_numpy(shop.validation)))["mrr"]


@pytest.fixture(scope="module")
def best_mrr(shop, truth) -> float:
    return oracle_mrr(shop, truth, CUES)


def test_default_size(shop):
    manifest = shop.manifest
    assert manifest.users == 1200
    assert 290 <= manifest.items <= 300
    assert 8.5 < manifest.figures["mean_length"] < 9.5
    assert manifest.figures["repeats"] == 0
    assert shop.sentences[0].split()[0] == "title"
    assert max(len(sentence.split()) for sentence in shop.sentences) <= 9


def test_the_oracle_is_far_above_counting(shop, best_mrr):
    counts = torch.from_numpy(np.bincount(shop.train.values, minlength=shop.n_items))
    popularity = ranking_metrics(ranks(counts.expand(shop.n_users, -1), torch.from_numpy(shop.validation)))["mrr"]
    assert best_mrr > 5 * popularity


@pytest.mark.parametrize("cue", CUES)
def test_every_cue_is_worth_something(shop, truth, best_mrr, cue):
    others = [other for other in CUES if other != cue]
    assert oracle_mrr(shop, truth, others) < 0.8 * best_mrr


def test_taste_shows_beyond_the_recent_window(shop, truth, best_mrr):
    assert oracle_mrr(shop, truth, CUES, newest=2) < 0.9 * best_mrr


def test_text_says_more_than_ids_do_where_items_are_rare(truth):
    """Items of one theme show its words, so that what holds for a bestseller holds for an item never bought."""
    words = [frozenset(title.split()[:2]) for title in truth.titles]
    for theme in set(truth.theme.tolist()):
        own = frozenset().union(*(words[item] for item in np.flatnonzero(truth.theme == theme)))
        others = frozenset().union(*(words[item] for item in np.flatnonzero(truth.theme != theme)))
        assert len(own) == 4
        assert not own & others


def test_the_oracle_is_the_posterior_mean_of_the_generator(truth):
    """Bayes' rule written out: a sum over favourite brands of their probability times that of the next item."""
    history = [3, 17, 120, 44]
    likelihood = np.ones(len(BRANDS))
    following = np.zeros((len(BRANDS), len(truth.titles)))
    for brand in range(len(BRANDS)):
        for step in range(len(history) + 1):
            logits = truth.log_weights(history[:step]) + truth.options.taste * (truth.brand == brand)
            following[brand] = np.exp(logits) / np.exp(logits).sum()
            if step < len(history):
                likelihood[brand] *= following[brand][history[step]]
    expected = (likelihood / likelihood.sum()) @ following
    np.testing.assert_allclose(truth.oracle(history), expected, rtol=1e-9)
    assert truth.oracle(history).sum() == pytest.approx(1)
    assert truth.oracle([]).sum() == pytest.approx(1)


def test_the_order_cue_is_one_way(truth):
    camera, lens = (np.flatnonzero(truth.noun == noun)[0] for noun in (0, 1))
    plain = truth.log_weights([], [])
    assert (NOUNS[0][0], NOUNS[1][0]) == ("camera", "lens")
    assert truth.log_weights([camera], ["order"])[lens] == pytest.approx(plain[lens] + truth.options.order)
    assert truth.log_weights([lens], ["order"])[camera] == pytest.approx(plain[camera])


def test_the_seed_decides(tmp_path, shop):
    small = {"users": 40, "items": 80}
    prints = [
        prepare("synthetic", None, tmp_path / str(run), seed=seed, min_item_interactions=1, **small).fingerprint
        for run, seed in enumerate([1, 1, 2])
    ]
    assert prints[0] == prints[1] != prints[2]


def test_larger_catalogues_keep_their_titles_apart():
    titles = Truth.plant(SyntheticOptions(items=5000)).titles
    assert len(set(titles)) == 5000


def test_bad_input(tmp_path):
    with pytest.raises(BadInput, match="leave the source 'here' out"):
        prepare("synthetic", Path("here"), tmp_path / "data")
    with pytest.raises(BadInput, match=r"items: .*got 10"):
        prepare("synthetic", None, tmp_path / "data", items=10)
