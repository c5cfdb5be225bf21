import gzip

import pytest
from shops import HISTORIES, INTERACTIONS, ITEMS, write_rows, write_shop

from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.errors import BadInput

KINDS = [kind + end for kind in ("csv", "tsv", "jsonl", "parquet") for end in ("", ".gz")]


def prepared(source, out, **options) -> Dataset:
    prepare("table", source, out, **options)
    return Dataset.open(out)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_dataset(tmp_path, kind):
    expected = prepared(write_shop(tmp_path / "plain"), tmp_path / "expected")
    data = prepared(write_shop(tmp_path / "raw", kind=kind), tmp_path / "data")
    assert data.fingerprint == expected.fingerprint
    assert data.item_ids == list("abcd")
    assert data.user_ids == list(HISTORIES)
    assert data.titles[:2] == ['Saw, "fine"', "Büro lamp"]
    assert data.sentences[1] == "title Büro lamp categories Light"


def test_amazon_names_are_found_and_copies_of_the_text_stay_out(tmp_path):
    items = [
        {
            "parent_asin": i["id"],
            "text": "all of it",
            "main category": i["categories"],
            "Title": i["title"],
            "store": "S",
        }
        for i in ITEMS
    ]
    log = [{"reviewerID": r["user"], "asin": r["item"], "unixReviewTime": r["timestamp"]} for r in INTERACTIONS]
    data = prepared(write_shop(tmp_path / "raw", items, log, "jsonl.gz"), tmp_path / "data")
    assert list(data.attributes) == ["title", "brand", "main category"]
    assert data.sentences[2] == "title Blue mug brand S main category Kitchen"
    assert "text stayed out" in data.manifest.rules[0]


def test_columns_and_files_by_option(tmp_path):
    items = [{"key": i["id"], "label": i["title"], "text": "words", "maker": "M"} for i in ITEMS]
    log = [{"who": r["user"], "what": r["item"], "when": r["timestamp"]} for r in INTERACTIONS]
    write_rows(tmp_path / "things.csv", items)
    write_rows(tmp_path / "log.tsv", log)
    names = {"item_id": "key", "title": "label", "user_id": "who", "interaction_item_id": "what", "timestamp": "when"}
    data = prepared(tmp_path, tmp_path / "data", items="things.csv", interactions="log.tsv", attributes="text", **names)
    assert data.sentences[3] == "title Red mug text words"
    assert (
        prepared(
            None,
            tmp_path / "data2",
            items=str(tmp_path / "things.csv"),
            interactions=str(tmp_path / "log.tsv"),
            attributes=["text"],
            **names,
        ).fingerprint
        == data.fingerprint
    )


def test_one_unusual_name_in_both_files_is_said_once(tmp_path):
    items = [{"code": i["id"], "title": i["title"]} for i in ITEMS]
    log = [{"user": r["user"], "code": r["item"], "time": r["timestamp"]} for r in INTERACTIONS]
    data = prepared(write_shop(tmp_path / "raw", items, log), tmp_path / "data", item_id="code")
    assert data.item_ids == list("abcd")


def test_numbers_lists_and_missing_values_become_text(tmp_path):
    items = [
        {"id": index, "title": i["title"], "categories": ["Home", ["Kitchen", None]], "price": 5.0, "brand": None}
        for index, i in enumerate(ITEMS)
    ]
    log = [r | {"item": "abcd".index(r["item"])} for r in INTERACTIONS]
    data = prepared(write_shop(tmp_path / "raw", items, log, "jsonl"), tmp_path / "data")
    assert data.item_ids == ["0", "1", "2", "3"]
    assert data.sentences[2] == "title Blue mug categories Home Kitchen price 5"


def test_quoted_line_breaks_and_blank_lines_are_no_errors(tmp_path):
    write_shop(tmp_path)
    log = (tmp_path / "interactions.csv").read_text()
    (tmp_path / "interactions.csv").write_text(log + "\n\n")
    items = (tmp_path / "items.csv").read_text().replace("Blue mug", '"Blue\nmug"')
    (tmp_path / "items.csv").write_bytes(b"\xef\xbb\xbf" + items.encode())
    assert prepared(tmp_path, tmp_path / "data").sentences[2] == "title Blue mug brand Cupco categories Kitchen"


@pytest.mark.parametrize("times", [[3, 1, 2, 0], [1.5, 0.5, 1.25, -2e3], [2**62, 2**62 - 2, 2**62 - 1, 5]])
def test_rows_are_sorted_by_time_within_a_user(tmp_path, times):
    log = [{"user": user, "item": item, "time": t} for user in "xyz" for item, t in zip("abcd", times, strict=True)]
    data = prepared(write_shop(tmp_path / "raw", interactions=log), tmp_path / "data", min_item_interactions=1)
    assert [data.item_ids[item] for item in data.train[0]] == ["d", "b"]
    assert data.item_ids[data.validation[0]] == "c"
    assert data.item_ids[data.open_test()[0]] == "a"


def test_file_order_needs_no_timestamp(tmp_path):
    log = [{"user": r["user"], "item": r["item"]} for r in INTERACTIONS]
    data = prepared(write_shop(tmp_path / "raw", interactions=log), tmp_path / "data", file_order=True)
    assert [data.item_ids[item] for item in data.train[3]] == ["d", "a", "b"]
    assert not data.manifest.warnings


def test_unknown_items_may_be_dropped(tmp_path):
    log = [*INTERACTIONS, {"user": "u1", "item": "zzz", "timestamp": 1}]
    data = prepared(write_shop(tmp_path / "raw", interactions=log), tmp_path / "data", unknown_items="drop")
    assert data.manifest.interactions == len(INTERACTIONS)
    assert data.manifest.warnings == ["1 interactions went because their item is not in the items file."]


def edit(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


def rename_title(raw):
    return raw.replace(b"title", b"heading", 1)


BAD_FILES = {
    "malformed csv row": (
        "interactions.csv",
        lambda raw: raw.replace(b"u2,c,10", b"u2,c"),
        r"interactions.csv, line 7: ",
    ),
    "open quote": ("items.csv", lambda raw: raw + b'"e,Mug,x,y\n', r"items.csv, line 6: is no csv row"),
    "not UTF-8": ("items.csv", lambda raw: raw.replace(b"B\xc3\xbc", b"B\xfc"), r"items.csv, line 3: is not UTF-8"),
    "duplicate item": ("items.csv", lambda raw: raw + b"b,Lamp,x,y\n", r"line 6: item id 'b' stands already at 3"),
    "item without id": ("items.csv", lambda raw: raw + b",Lamp,x,y\n", r"line 6: has no item id in column 'id'"),
    "unknown item": (
        "interactions.csv",
        lambda raw: raw + b"u1,zz,9\n",
        r"interactions.csv, line 19: item 'zz' is not",
    ),
    "empty user": ("interactions.csv", lambda raw: raw + b",a,9\n", r"line 19: is empty in column 'user'"),
    "time is a word": ("interactions.csv", lambda raw: raw + b"u1,a,noon\n", r"line 19: 'noon' in column 'timestamp'"),
    "time is not finite": (
        "interactions.csv",
        lambda raw: raw + b"u1,a,nan\n",
        r"line 19: 'nan' in column 'timestamp'",
    ),
    "no title": ("items.csv", rename_title, r"no column for title; it has heading, brand, categories"),
    "column twice": ("items.csv", lambda raw: raw.replace(b"brand", b"title", 1), r"column 'title' stands there twice"),
    "empty file": ("items.csv", lambda raw: b"", r"items.csv: is empty"),
    "no rows": ("interactions.csv", lambda raw: raw.splitlines(True)[0], r"too little data: of 0 users"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    name, change, message = BAD_FILES[case]
    edit(write_shop(tmp_path / "raw"), name, change)
    with pytest.raises(BadInput, match=message) as caught:
        prepare("table", tmp_path / "raw", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_bad_jsonl_names_its_line_also_in_gz(tmp_path):
    folder = write_shop(tmp_path / "raw", kind="jsonl.gz")
    lines = gzip.decompress((folder / "interactions.jsonl.gz").read_bytes()).splitlines(keepends=True)
    for bad, message in ((b"{oops\n", "line 4: is not JSON"), (b"[1, 2]\n", "line 4: is no JSON object")):
        (folder / "interactions.jsonl.gz").write_bytes(gzip.compress(b"".join([*lines[:3], bad, *lines[4:]])))
        with pytest.raises(BadInput, match=f"interactions.jsonl.gz, {message}"):
            prepare("table", folder, tmp_path / "data")


def test_a_row_of_a_parquet_file_is_named_by_its_number(tmp_path):
    log = [*INTERACTIONS, {"user": "u1", "item": "zz", "timestamp": 3}]
    with pytest.raises(BadInput, match=r"interactions.parquet, row 18: item 'zz'"):
        prepare("table", write_shop(tmp_path / "raw", interactions=log, kind="parquet"), tmp_path / "data")


@pytest.mark.parametrize("kind", ["csv.gz", "parquet", "parquet.gz"])
def test_damaged_files_cannot_be_read(tmp_path, kind):
    folder = write_shop(tmp_path / "raw", kind=kind)
    for change in (lambda raw: raw[: len(raw) // 2], lambda raw: b"something else"):
        write_shop(folder, kind=kind)
        edit(folder, f"interactions.{kind}", change)
        with pytest.raises(BadInput, match=f"interactions.{kind}: cannot be read"):
            prepare("table", folder, tmp_path / "data")


def test_bad_sources_and_options(tmp_path):
    folder = write_shop(tmp_path / "raw")
    out = tmp_path / "data"
    for source, options, message in [
        (None, {}, "needs a source folder"),
        (tmp_path / "nothing", {}, "nothing: does not exist"),
        (folder / "items.csv", {}, "is a file, not a folder"),
        (tmp_path, {}, "has no items file"),
        (folder, {"items": "other.csv"}, r"other.csv: cannot be read \(No such file"),
        (folder, {"items": "other.xlsx"}, "the name must end in .csv"),
        (folder, {"title": "name"}, r"has no column 'name' \(option title\); it has title, brand, categories"),
        (folder, {"attributes": "brand,colour"}, r"no column 'colour' \(option attributes\)"),
        (folder, {"user_id": "who"}, r"interactions.csv: has no column 'who' \(option user_id\); it has user, item, t"),
        (folder, {"colour": "red"}, "option colour is unknown to format table; the options are items, "),
        (folder, {"min_item_interactions": "many"}, "min_item_interactions: .*got 'many'"),
        (folder, {"min_user_interactions": 2}, "min_user_interactions: .*got 2"),
        (folder, {"unknown_items": "keep"}, "unknown_items: .*got 'keep'"),
    ]:
        with pytest.raises(BadInput, match=message):
            prepare("table", source, out, **options)
    write_rows(folder / "items.jsonl", ITEMS)
    with pytest.raises(BadInput, match=r"holds items.csv and items.jsonl; say which one"):
        prepare("table", folder, out)
    assert not out.exists()
