import json

import pytest
from layouts import HISTORIES, copied, edit, histories, prepared

from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.errors import BadInput


def change(path, **entries) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (document | entries).items() if value is not None}))


def test_sentences_of_the_attributes(tmp_path):
    source = copied("recformer", tmp_path)
    data = prepared("recformer", source, tmp_path / "data")
    assert data.sentences == [
        "title Oak tray categories Kitchen Serving",
        "title Copper kettle brand Aldo categories Kitchen Kettles",
        "title Tea & spice tin brand Brix categories Kitchen Storage",
        "title Glass jar brand Elko categories Kitchen Storage",
        "title Linen towel brand Denzo categories Home Textiles",
    ]
    assert data.manifest.rules[0] == "Item sentences are made of title, brand, categories, without HTML."
    assert list(prepared("recformer", source, tmp_path / "other", attributes="brand").attributes) == ["title", "brand"]


def test_the_unsplit_short_history_is_no_error(tmp_path):
    data = prepared("recformer", copied("recformer", tmp_path), tmp_path / "data")
    assert histories(data) == HISTORIES
    assert data.manifest.removed["users_with_too_few_interactions"] == 1


def test_an_item_without_attributes_is_untitled(tmp_path):
    source = copied("recformer", tmp_path)
    change(source / "meta_data.json", b=None)
    data = prepared("recformer", source, tmp_path / "data")
    assert "b" not in data.item_ids
    assert data.manifest.warnings == ["1 items are not in meta_data.json and count as untitled."]


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("train", {"7": [1]}, "train.json has user 7, which is no number of umap.json"),
        ("train", {"1": [1, 99]}, r"user 'u2' \(number 1\) has item 99, no number of smap.json"),
        ("val", {"1": None}, r"user 'u2' \(number 1\) must have one item in val.json and one in test.json"),
        ("test", {"1": [2, 3]}, r"user 'u2' \(number 1\) must have one item"),
        ("test", {"4": [2]}, r"user 'short' \(number 4\) must have one item"),
        ("train", {"4": [0, 1, 2]}, r"user 'short' \(number 4\) must have one item"),
        ("train", {"1": 5}, r"train.json: user 1 must have a list of items"),
        ("smap", {"f": 0}, "smap.json gives one number to several ids"),
        ("meta_data", {"b": "Tea"}, "meta_data.json: item 'b' must be an object of attributes"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, entries, message):
    source = copied("recformer", tmp_path)
    change(source / f"{name}.json", **entries)
    with pytest.raises(BadInput, match=message):
        prepare("recformer", source, tmp_path / "data")


def test_what_is_no_object_is_named(tmp_path):
    source = copied("recformer", tmp_path)
    edit(source / "val.json", lambda text: "[1]")
    with pytest.raises(BadInput, match=r"val.json: must hold one JSON object"):
        prepare("recformer", source, tmp_path / "data")
    edit(source / "val.json", lambda text: "{'0': [1]}")
    with pytest.raises(BadInput, match=r"val.json: is not JSON"):
        prepare("recformer", source, tmp_path / "data")


@pytest.mark.realdata
def test_scientific_comes_back_with_the_same_split(realdata, tmp_path):
    prepare("table", realdata / "scientific", tmp_path / "table")
    original = Dataset.open(tmp_path / "table")
    parts = (original.train, original.validation[:, None], original.open_test()[:, None])
    documents = {
        name: {str(user): items.tolist() for user, items in enumerate(part)}
        for name, part in zip(("train", "val", "test"), parts, strict=True)
    }
    documents["umap"] = {id: number for number, id in enumerate(original.user_ids)}
    documents["smap"] = {id: number for number, id in enumerate(original.item_ids)}
    meta = zip(*original.attributes.values(), strict=True)
    documents["meta_data"] = {
        id: dict(zip(("title", "brand", "category"), row, strict=True))
        for id, row in zip(original.item_ids, meta, strict=True)
    }
    (tmp_path / "layout").mkdir()
    for name, document in documents.items():
        (tmp_path / "layout" / f"{name}.json").write_text(json.dumps(document))
    manifest = prepare("recformer", tmp_path / "layout", tmp_path / "data")
    for part in ("users", "train", "validation", "test"):
        assert manifest.digests[part] == original.manifest.digests[part]
