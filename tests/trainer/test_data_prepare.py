import json
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import INTERACTIONS, ITEMS, shop_of, write_shop

from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.errors import BadInput

ring = {f"u{start}": ("abcdefgh" * 2)[start : start + 5] for start in range(8)}


def letters(data: Dataset, items) -> str:
    return "".join(data.item_ids[item] for item in items)


def test_leave_one_out(tmp_path):
    data = shop_of(tmp_path, ring)
    assert letters(data, data.train[0]) == "abc"
    assert letters(data, data.validation) == "defghabc"
    assert letters(data, data.open_test()) == "efghabcd"
    assert letters(data, data.inputs("test")[7]) == "habc"
    assert letters(data, data.inputs("validation")[7]) == "hab"
    manifest = data.manifest
    assert (manifest.users, manifest.items, manifest.interactions, manifest.train_interactions) == (8, 8, 40, 24)
    assert sum(manifest.removed.values()) == 0


def naive_filter(histories: dict[str, str], untitled: str, item_minimum: int, user_minimum: int) -> dict[str, str]:
    """One item or user at a time, in any order: the largest set where all rules hold is one and the same."""
    kept = {user: "".join(item for item in items if item not in untitled) for user, items in histories.items()}
    while True:
        counts = Counter("".join(kept.values()))
        rare = [item for item, count in counts.items() if count < item_minimum]
        short = [user for user, items in kept.items() if len(items) < user_minimum]
        if rare:
            kept = {user: items.replace(rare[0], "") for user, items in kept.items()}
        elif short:
            del kept[short[0]]
        else:
            return kept


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abcdef", min_size=1, max_size=9), min_size=1, max_size=9),
    st.sampled_from(["", "a", "bc"]),
    st.integers(1, 5),
    st.integers(3, 5),
)
def test_filters_go_on_until_nothing_changes(tmp_path_factory, histories, untitled, item_minimum, user_minimum):
    named = {f"u{index}": items for index, items in enumerate(histories)}
    expected = naive_filter(named, untitled, item_minimum, user_minimum)
    folder = tmp_path_factory.mktemp("shop")
    options = {"min_item_interactions": item_minimum, "min_user_interactions": user_minimum}
    titles = dict.fromkeys(untitled, " ")
    if len(expected) < 2 or len(set("".join(expected.values()))) < 2:
        with pytest.raises(BadInput, match="too little data"):
            shop_of(folder, named, titles, **options)
        return
    data = shop_of(folder, named, titles, **options)
    test = data.open_test()
    found = {user: letters(data, [*data.train[i], data.validation[i], test[i]]) for i, user in enumerate(data.user_ids)}
    assert found == expected
    assert data.item_ids == sorted(set("".join(expected.values())))
    everything = len("".join(histories))
    assert data.manifest.removed["interactions"] == everything - len("".join(expected.values()))
    gone_items = sum(count for name, count in data.manifest.removed.items() if name.startswith("items"))
    assert gone_items == len(set("".join(histories))) - data.n_items


def test_too_little_data_says_what_the_filters_took(tmp_path):
    with pytest.raises(BadInput) as caught:
        shop_of(tmp_path, {"u1": "aabb", "u2": "ab", "u3": "c"}, {"c": ""})
    message = str(caught.value)
    assert "of 3 users, 3 items and 7 interactions 0 users and 0 items are left" in message
    assert "1 items without a title" in message
    assert "lower min_item_interactions or min_user_interactions" in message


def test_ties_keep_the_order_of_the_file_and_are_reported(tmp_path):
    log = [{"user": user, "item": item, "time": time} for user, time in (("u1", 5), ("u2", 6)) for item in "abcd"]
    log += [{"user": "u3", "item": item, "time": t} for item, t in (("d", 9), ("a", 1), ("b", 1), ("c", 2))]
    log += [{"user": "u4", "item": item, "time": t} for t, item in enumerate("abcd")]
    prepare("table", write_shop(tmp_path / "raw", interactions=log), tmp_path / "data")
    data = Dataset.open(tmp_path / "data")
    assert letters(data, data.train[0]) == "ab"
    assert letters(data, [data.validation[0], data.open_test()[0]]) == "cd"
    assert letters(data, data.train[2]) == "ab"
    assert data.manifest.warnings == [
        "3 of 4 users have equal times; there the order of the file was kept, and for 2 of them it decides which item "
        "is held out."
    ]


def test_many_equal_times_keep_the_order_of_the_file(tmp_path):
    """Enough of them that an unstable sort would mix them."""
    items = "abcdefgh" * 40 + "hgfedcba"
    log = [{"user": user, "item": item, "time": 7} for item in items for user in ("u1", "u2")]
    shop = [{"id": letter, "title": letter} for letter in "abcdefgh"]
    prepare("table", write_shop(tmp_path / "raw", shop, log), tmp_path / "data")
    data = Dataset.open(tmp_path / "data")
    assert letters(data, data.train[1]) == items[:-2]


def test_repeats_stay(tmp_path):
    data = shop_of(tmp_path, {"u1": "aabba", "u2": "abbab"})
    assert letters(data, data.train[0]) == "aab"
    assert data.manifest.figures["repeats"] == 6


def test_the_fingerprint_is_of_the_content(tmp_path):
    one, same = shop_of(tmp_path / "1", ring), shop_of(tmp_path / "2", dict(ring))
    assert one.fingerprint == same.fingerprint
    for part in ("items", "users", "train", "validation", "test"):
        path = same.folder / f"{part}.parquet"
        pq.write_table(pq.read_table(path), path, compression="zstd", use_dictionary=False)
    rewritten = Dataset.open(same.folder)
    assert rewritten.open_test().tolist() == one.open_test().tolist()
    others = [
        shop_of(tmp_path / "3", ring, {"a": "another title"}),
        shop_of(tmp_path / "4", ring | {"u0": "abced"}),
        shop_of(tmp_path / "5", {("v0" if user == "u0" else user): items for user, items in ring.items()}),
    ]
    assert len({data.fingerprint for data in (one, *others)}) == 4


def test_an_earlier_dataset_is_replaced_but_no_other_folder(tmp_path):
    source = write_shop(tmp_path / "raw")
    out = tmp_path / "data"
    out.mkdir()
    first = prepare("table", source, out)
    write_shop(source, [ITEMS[0] | {"title": "New saw"}, *ITEMS[1:]])
    assert prepare("table", source, out).fingerprint != first.fingerprint
    assert Dataset.open(out).titles[0] == "New saw"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "raw"]
    with pytest.raises(BadInput, match="holds other files and no dataset"):
        prepare("table", source, source)
    with pytest.raises(BadInput, match="is a file; name a folder"):
        prepare("table", source, source / "items.csv")


def test_unknown_format(tmp_path):
    with pytest.raises(BadInput, match=r"format 'xml' is unknown; the formats are amazon, .*, table, unisrec$"):
        prepare("xml", None, tmp_path / "data")


def test_the_manifest_names_sources_and_rules(tmp_path):
    manifest = prepare("table", write_shop(tmp_path / "raw"), tmp_path / "data", min_user_interactions=3)
    assert set(manifest.source_files) == {"items.csv", "interactions.csv"}
    assert any("users with fewer than 3" in rule for rule in manifest.rules)
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["fingerprint"] == manifest.fingerprint
    shutil.rmtree(tmp_path / "raw")
    assert Dataset.open(tmp_path / "data").manifest.interactions == len(INTERACTIONS)
