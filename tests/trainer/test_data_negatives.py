import numpy as np
import pytest
from shops import shop_of
from threadpoolctl import threadpool_limits
from tiny_models import save_tiny_opt

from trainer.config import NegativesConfig
from trainer.data.dataset import Dataset
from trainer.data.item_vectors import factorise, text_vectors
from trainer.data.negatives import FEWEST, hard_negatives
from trainer.data.prepare import prepare
from trainer.errors import BadInput

ring = {f"u{start}": ("abcdefghijklmnop" * 2)[start : start + 5] for start in range(16)}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("negatives") / "data"
    prepare("synthetic", None, folder, users=60, items=200, min_item_interactions=1)
    return Dataset.open(folder)


def as_lists(rows):
    return [row.tolist() for row in rows]


def partners(data: Dataset) -> list[set[int]]:
    """Items that share a user's training part with each item, itself included."""
    found: list[set[int]] = [set() for _ in range(data.n_items)]
    for history in data.train:
        for item in history:
            found[item].update(history.tolist())
    return found


def naive_nearest(vectors: np.ndarray, item: int, count: int, allowed: set[int]) -> set[int]:
    distances = np.linalg.norm(vectors.astype(float) - vectors[item], axis=1)
    return set(sorted(allowed - {item}, key=lambda other: distances[other])[:count])


@pytest.mark.parametrize("fraction", [0.005, 0.05, 0.2])
def test_against_the_definition(shop, tmp_path, fraction):
    config = NegativesConfig(fraction=fraction, mf_dimension=20)
    found = hard_negatives(shop, config, tmp_path)
    together, everything = partners(shop), set(range(shop.n_items))
    text = text_vectors(shop.sentences, "tfidf")
    trained = {item for item, others in enumerate(together) if others}
    columns = sorted(trained)
    factors = np.full((shop.n_items, 20), np.nan)
    factors[columns] = factorise(shop.training_matrix()[:, columns], 20)
    small = fraction * shop.n_items < FEWEST
    count = FEWEST if small else int(np.ceil(fraction * shop.n_items))
    for item in range(shop.n_items):
        allowed = everything - together[item] if small else everything
        expected = naive_nearest(text, item, count, allowed)
        if item in trained:
            expected |= naive_nearest(factors, item, count, allowed & trained)
        # Rounding may swap two items at nearly the same distance.
        assert len((expected - together[item]) ^ set(found[item].tolist())) <= 2
        assert not set(found[item].tolist()) & (together[item] | {item})


def test_a_small_catalogue_still_has_something_to_draw(shop, tmp_path):
    assert hard_negatives(shop, NegativesConfig(), tmp_path).lengths.min() >= FEWEST


def test_held_out_items_change_nothing(tmp_path):
    changed = {user: items[:3] + items[4] + items[3] for user, items in ring.items()}
    one, other = shop_of(tmp_path / "1", ring), shop_of(tmp_path / "2", changed)
    assert one.validation.tolist() != other.validation.tolist()
    mined = [hard_negatives(data, NegativesConfig(), tmp_path / name) for data, name in ((one, "c1"), (other, "c2"))]
    assert as_lists(mined[0]) == as_lists(mined[1])
    # a and d are never together in a training part, only where d is held out, so d may be a negative of a.
    together = partners(one)
    a, d = one.item_ids.index("a"), one.item_ids.index("d")
    assert d not in together[a]
    assert d in one.inputs("test")[0]
    everyone = hard_negatives(one, NegativesConfig(fraction=1.0), tmp_path / "c3")
    assert everyone[a].tolist() == sorted(set(range(one.n_items)) - together[a])


def test_a_subset_is_mined_from_its_own_users(shop, tmp_path):
    part = shop.subset(0.2, 0)
    everyone = NegativesConfig(fraction=1.0)
    found = hard_negatives(part, everyone, tmp_path)
    for item, others in enumerate(partners(part)):
        assert set(found[item].tolist()) == set(range(shop.n_items)) - others - {item}


def test_the_second_time_comes_from_the_cache(shop, tmp_path):
    first = hard_negatives(shop, NegativesConfig(), tmp_path)
    folders = [path for path in (tmp_path / "negatives").iterdir() if path.is_dir()]
    assert as_lists(hard_negatives(shop, NegativesConfig(), tmp_path)) == as_lists(first)
    assert [path for path in (tmp_path / "negatives").iterdir() if path.is_dir()] == folders
    hard_negatives(shop, NegativesConfig(fraction=0.1), tmp_path)
    hard_negatives(shop.subset(0.5, 0), NegativesConfig(), tmp_path)
    assert len([path for path in (tmp_path / "negatives").iterdir() if path.is_dir()]) == 3


def test_factors_of_full_rank_keep_every_distance(shop):
    bought = shop.training_matrix()
    vectors = factorise(bought, 10**6)
    assert vectors.shape[1] == min(bought.shape)
    np.testing.assert_allclose(vectors @ vectors.T, (bought.T @ bought).toarray(), atol=1e-3)


def test_a_hugging_face_encoder_is_pooled_over_real_tokens_only(shop, tmp_path):
    encoder = str(save_tiny_opt(tmp_path / "encoder", shop.sentences))
    vectors = text_vectors(shop.sentences, encoder)
    assert vectors.shape[0] == shop.n_items
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    for item in (0, 7):
        alone = model(**tokenizer(shop.sentences[item], return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vectors[item], alone.detach().numpy(), atol=1e-5)
    found = hard_negatives(shop, NegativesConfig(encoder=encoder), tmp_path / "cache")
    assert len(found) == shop.n_items


def test_an_encoder_that_is_no_model(shop, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"negatives.encoder '.*empty': cannot be loaded"):
        hard_negatives(shop, NegativesConfig(encoder=str(tmp_path / "empty")), tmp_path / "cache")


def test_the_number_of_threads_chooses_nothing(shop, tmp_path):
    mined = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            mined.append(hard_negatives(shop, NegativesConfig(), tmp_path / str(threads)))
    assert as_lists(mined[0]) == as_lists(mined[1])


def test_at_most_so_many_by_each_distance(shop, tmp_path):
    found = hard_negatives(shop, NegativesConfig(fraction=0.2, most=7), tmp_path)
    assert 7 < found.lengths.max() <= 14
    few = hard_negatives(shop, NegativesConfig(most=2), tmp_path)
    assert few.lengths.max() <= 4


@pytest.mark.parametrize("fraction", [0.005, 0.1])
def test_blocks_of_items_change_nothing(shop, tmp_path, monkeypatch, fraction):
    config = NegativesConfig(fraction=fraction)
    whole = hard_negatives(shop, config, tmp_path / "whole")
    monkeypatch.setattr("trainer.data.negatives.QUERIES", 7)
    assert as_lists(hard_negatives(shop, config, tmp_path / "blocks")) == as_lists(whole)


@pytest.mark.parametrize("fraction", [0.005, 0.1])
def test_an_index_that_reads_every_list_finds_what_all_distances_say(shop, tmp_path, fraction):
    pytest.importorskip("faiss", reason="the extra `ann` is not installed")
    exact = NegativesConfig(fraction=fraction, mf_dimension=20)
    ours, others = (
        hard_negatives(shop, config, tmp_path) for config in (exact, exact.model_copy(update={"search": "approximate"}))
    )
    together = partners(shop)
    for item in range(shop.n_items):
        assert not set(others[item].tolist()) & (together[item] | {item})
    # Equal distances leave a choice, which the index takes in its own way.
    assert abs(ours.lengths.sum() - others.lengths.sum()) < 0.05 * ours.lengths.sum()
    assert sum(len(np.intersect1d(a, b)) for a, b in zip(ours, others, strict=True)) > 0.8 * ours.lengths.sum()
