import numpy as np
import pytest
from layouts import copied, edit, histories, prepared

from trainer.data.prepare import prepare
from trainer.errors import BadInput


def test_words_are_read_and_numbers_stay_out(tmp_path):
    data = prepared("recbole", copied("recbole", tmp_path), tmp_path / "data")
    assert data.sentences[0] == "title Copper kettle brand Aldo categories Kitchen Kettles year 2000"
    assert data.sentences[2] == "title Oak tray categories Kitchen Serving year 2002"
    assert data.manifest.rules[0].endswith("; sales_rank stayed out.")
    assert sorted(data.manifest.source_files) == ["kitchen.inter", "kitchen.item"]


def test_columns_and_files_by_option(tmp_path):
    source = copied("recbole", tmp_path)
    edit(source / "kitchen.item", lambda text: text.replace("movie_title:", "label:"))
    with pytest.raises(BadInput, match=r"kitchen.item: has no column for title; it has label, year"):
        prepare("recbole", source, tmp_path / "data")
    (source / "kitchen.item").rename(source / "things.tab")
    data = prepared("recbole", source, tmp_path / "data", items="things.tab", title="label", attributes="sales_rank")
    assert data.sentences[1] == "title Tea & spice tin sales_rank 1.0"


def test_the_file_s_order_may_stand_for_times(tmp_path):
    source = copied("recbole", tmp_path)
    edit(source / "kitchen.inter", lambda text: text.replace("timestamp:float", "place:token"))
    with pytest.raises(BadInput, match=r"kitchen.inter: has no column for timestamp; it has user_id, item_id, rating"):
        prepare("recbole", source, tmp_path / "data")
    assert histories(prepared("recbole", source, tmp_path / "data", file_order=True))["u1"] == "aecdb"


def test_a_tie_keeps_the_order_of_the_file(tmp_path):
    source = copied("recbole", tmp_path)
    lines = (source / "kitchen.inter").read_text().splitlines(keepends=True)
    (source / "kitchen.inter").write_text("".join([lines[0], *reversed(lines[1:])]))
    assert histories(prepared("recbole", source, tmp_path / "data"))["u4"] == "deacb"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("inter", "rating:float", "rating", "kitchen.inter: column 'rating' has no type"),
        ("inter", "rating:float", "rating:number", "column 'rating:number' has no type .* token, token_seq, float"),
        ("inter", "rating:float", "item_id:float", "kitchen.inter: a column stands there twice"),
        ("inter", "u3\tb\t4\t", "u3\tb\t", "kitchen.inter, line 2: has 3 fields, the first line has 4"),
        ("inter", "u3\tb\t4\t", "u3\tf\t4\t", "kitchen.inter, line 2: item 'f' is not in the items file"),
        ("inter", "u3\tb\t4\t", "\tb\t4\t", "kitchen.inter, line 2: is empty in column 'user_id'"),
        ("inter", "1515110400", "noon", "kitchen.inter, line 2: 'noon' in column 'timestamp' is no number"),
        ("inter", "rating:float", "item_id_list:token_seq", "read it by format unisrec"),
        ("item", "b\tTea", "a\tTea", "kitchen.item, line 3: item id 'a' stands already at 2"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, old, new, message):
    source = copied("recbole", tmp_path)
    edit(source / f"kitchen.{name}", lambda text: text.replace(old, new, 1))
    with pytest.raises(BadInput, match=message):
        prepare("recbole", source, tmp_path / "data")


@pytest.mark.realdata
def test_movielens(realdata, tmp_path):
    data = prepared("recbole", realdata / "ml-100k-recbole", tmp_path / "data")
    manifest = data.manifest
    assert (manifest.users, manifest.items, manifest.interactions) == (943, 1682, 100_000)
    assert manifest.removed["interactions"] == 0
    assert [manifest.figures[f"length_{q}%"] for q in (0, 25, 50, 75, 100)] == [20, 33, 65, 148, 737]
    assert data.sentences[0] == "title Toy Story categories Animation Children's Comedy release_year 1995"
    again = prepared("recbole", realdata / "ml-100k-recbole", tmp_path / "again")
    assert again.fingerprint == data.fingerprint
    liked = prepared("recbole", realdata / "ml-100k-recbole", tmp_path / "liked", min_rating=4)
    assert liked.manifest.removed["interactions_rated_too_low"] == 44_625


@pytest.mark.realdata
def test_movielens_in_time_order(realdata, tmp_path):
    """The last item of every user, found by hand."""
    data = prepared("recbole", realdata / "ml-100k-recbole", tmp_path / "data")
    rows = np.loadtxt(realdata / "ml-100k-recbole" / "ml-100k.inter", skiprows=1, dtype=np.int64)
    latest = {}
    for user, item, _, time in rows.tolist():
        if time >= latest.get(user, (0, 0))[0]:
            latest[user] = (time, item)
    found = {int(user): int(data.item_ids[item]) for user, item in zip(data.user_ids, data.open_test(), strict=True)}
    assert found == {user: item for user, (_, item) in latest.items()}
