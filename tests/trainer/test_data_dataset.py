import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import shop_of

from trainer.data.dataset import Dataset, SealedSplit, openings_of
from trainer.errors import BadInput

ring = {f"u{start}": ("abcdefgh" * 2)[start : start + 5] for start in range(8)}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Dataset:
    return shop_of(tmp_path_factory.mktemp("shop"), ring)


@pytest.fixture
def own_shop(tmp_path) -> Dataset:
    return shop_of(tmp_path, ring)


@settings(max_examples=40)
@given(fraction=st.floats(0, 1, exclude_min=True), seed=st.integers(0, 2**32))
def test_a_subset_is_users_with_all_that_is_theirs(shop, fraction, seed):
    part = shop.subset(fraction, seed)
    assert part.n_users == max(1, round(fraction * shop.n_users))
    assert part.user_index.tolist() == sorted(set(part.user_index.tolist()))
    assert part.user_ids == [shop.user_ids[user] for user in part.user_index]
    assert part.item_ids == shop.item_ids
    for row, user in enumerate(part.user_index):
        assert part.train[row].tolist() == shop.train[user].tolist()
    assert part.validation.tolist() == shop.validation[part.user_index].tolist()
    assert part.open_test().tolist() == shop.open_test()[part.user_index].tolist()
    assert part.fingerprint == shop.fingerprint


def test_subsets_are_drawn_by_their_seed_and_lie_in_larger_ones(shop):
    draws = {tuple(shop.subset(0.5, seed).user_ids) for seed in range(20)}
    assert len(draws) > 5
    assert shop.subset(0.5, 3).user_ids == shop.subset(0.5, 3).user_ids
    assert set(shop.subset(0.25, 3).user_ids) < set(shop.subset(0.75, 3).user_ids)
    assert shop.subset(1.0, 3).user_ids == shop.user_ids


def test_a_subset_of_a_subset_knows_its_users(shop):
    part = shop.subset(0.75, 1).subset(0.5, 2)
    assert part.user_ids == [shop.user_ids[user] for user in part.user_index]
    assert part.open_test().tolist() == shop.open_test()[part.user_index].tolist()


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_impossible_fractions(shop, fraction):
    with pytest.raises(ValueError, match="fraction of the users"):
        shop.subset(fraction, 0)


def test_the_test_split_is_sealed_until_it_is_opened_on_purpose(own_shop):
    for data in (own_shop, own_shop.subset(0.5, 0)):
        data.inputs("test")
        with pytest.raises(SealedSplit, match="the test split is sealed"):
            data.targets("test")
        opened = data.unsealed("a final look")
        assert opened.targets("test").tolist() == data.open_test().tolist()
        assert opened.subset(0.5, 1).targets("test").tolist() == data.subset(0.5, 1).open_test().tolist()
        assert opened.fingerprint == data.fingerprint
    assert [opening["reason"] for opening in openings_of(own_shop.folder)] == ["a final look"] * 2


def test_opening_reads_no_test_item(own_shop):
    (own_shop.folder / "test.parquet").unlink()
    data = Dataset.open(own_shop.folder)
    data.subset(0.5, 0).training_matrix()
    for opening in (data.open_test, lambda: data.unsealed("in vain")):
        with pytest.raises(BadInput, match=r"test.parquet: cannot be read"):
            opening()
    assert openings_of(own_shop.folder) == []


def test_a_dataset_that_cannot_be_written_is_opened_all_the_same(own_shop):
    (own_shop.folder / "test_openings.jsonl").mkdir()
    assert own_shop.unsealed("a look").targets("test").tolist() == own_shop.open_test().tolist()


@pytest.mark.parametrize("part", ["items", "users", "train", "validation", "test"])
def test_a_changed_part_is_noticed(own_shop, part):
    path = own_shop.folder / f"{part}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array([1, 0, *range(2, len(table))])), path)
    with pytest.raises(BadInput, match=f"{part}.parquet: does not match the fingerprint"):
        Dataset.open(own_shop.folder).open_test()


def test_no_dataset(tmp_path, own_shop):
    with pytest.raises(BadInput, match="is no dataset folder"):
        Dataset.open(tmp_path / "nothing")
    manifest = own_shop.folder / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"version": 99}))
    with pytest.raises(BadInput, match="layout version 99 is unknown"):
        Dataset.open(own_shop.folder)
    for text in ("{", "[]", json.dumps({"version": 1})):
        manifest.write_text(text)
        with pytest.raises(BadInput, match="is damaged"):
            Dataset.open(own_shop.folder)
    manifest.write_text(json.dumps(document))
    (own_shop.folder / "train.parquet").write_bytes(b"junk")
    with pytest.raises(BadInput, match="a part of the dataset cannot be read"):
        Dataset.open(own_shop.folder)


def test_the_training_matrix_has_ones_and_leaves_the_histories_alone(tmp_path):
    data = shop_of(tmp_path, {"u1": "bbaab", "u2": "abbab"})
    before = [row.tolist() for row in data.train]
    assert data.training_matrix().toarray().tolist() == [[1, 1], [1, 1]]
    assert [row.tolist() for row in data.train] == before == [[1, 1, 0], [0, 1, 1]]


def test_the_training_digest_ignores_what_is_held_out(tmp_path):
    changed = {user: items[:3] + items[4] + items[3] for user, items in ring.items()}
    one, other = shop_of(tmp_path / "1", ring), shop_of(tmp_path / "2", changed)
    assert one.fingerprint != other.fingerprint
    assert one.training_digest() == other.training_digest()
    assert one.subset(0.5, 0).training_digest() != one.training_digest()
    assert np.array_equal(one.validation, other.open_test())
