import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from shops import shop_of
from threadpoolctl import threadpool_limits
from tiny_models import save_tiny_opt

from trainer.config import NegativesConfig
from trainer.data.dataset import Dataset
from trainer.data.negatives import FEWEST, factorise, hard_negatives, nearest, text_vectors
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
    text = text_vectors(shop, "tfidf")
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


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 40), st.randoms(use_true_random=False))
def test_blocks_do_not_change_the_search(n, count, block_distances, random):
    vectors = np.array([[random.random() for _ in range(3)] for _ in range(n)], np.float32)
    forbidden = sparse.csr_matrix(np.array([[random.random() < 0.3 for _ in range(n)] for _ in range(n)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.data.negatives._BLOCK_DISTANCES", block_distances)
        found = as_lists(nearest(vectors, count, forbidden))
    for item in range(n):
        distances = np.linalg.norm(vectors.astype(float) - vectors[item], axis=1)
        free = [other for other in range(n) if other != item and not forbidden[item, other]]
        assert found[item] == sorted(free, key=lambda other: distances[other])[:count]


def test_factors_of_full_rank_keep_every_distance(shop):
    bought = shop.training_matrix()
    vectors = factorise(bought, 10**6)
    assert vectors.shape[1] == min(bought.shape)
    np.testing.assert_allclose(vectors @ vectors.T, (bought.T @ bought).toarray(), atol=1e-3)


def test_a_hugging_face_encoder_is_pooled_over_real_tokens_only(shop, tmp_path):
    encoder = str(save_tiny_opt(tmp_path / "encoder", shop.sentences))
    vectors = text_vectors(shop, encoder)
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


def test_rounding_and_the_number_of_threads_choose_nothing(shop, tmp_path):
    """At full rank the squared distances are whole numbers, so most neighbours tie with others."""
    vectors = factorise(shop.training_matrix(), 1000)
    noise = np.random.default_rng(0).normal(size=vectors.shape) * 1e-13
    assert as_lists(nearest(vectors, 6)) == as_lists(nearest(vectors + noise, 6))
    mined = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            mined.append(hard_negatives(shop, NegativesConfig(), tmp_path / str(threads)))
    assert as_lists(mined[0]) == as_lists(mined[1])
