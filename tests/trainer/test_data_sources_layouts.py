"""What holds for every foreign layout."""

import pytest
from layouts import HISTORIES, TITLES, copied, histories, prepared

from trainer.data.prepare import prepare
from trainer.data.sources import SOURCES
from trainer.errors import BadInput

LAYOUTS = ("amazon", "recbole", "recformer", "unisrec")


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_tells_the_same_histories(tmp_path, layout, gz):
    data = prepared(layout, copied(layout, tmp_path, gz), tmp_path / "data")
    assert histories(data) == HISTORIES
    assert data.manifest.warnings or layout in ("recformer", "unisrec")
    for item, title in zip(data.item_ids, data.titles, strict=True):
        assert title.startswith(TITLES[item[-1].lower()])
    assert all(name.endswith(".gz") for name in data.manifest.source_files) == gz


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fingerprint_is_the_same_again(tmp_path, layout):
    source = copied(layout, tmp_path)
    first, second = (prepared(layout, source, tmp_path / name) for name in ("one", "two"))
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_file_or_folder_is_named(tmp_path, layout):
    source = copied(layout, tmp_path)
    for named, message in ((None, "folder"), (tmp_path / "nowhere", "nowhere: "), (tmp_path, f"{tmp_path}: has no ")):
        with pytest.raises(BadInput, match=message):
            prepare(layout, named, tmp_path / "data")
    for path in [path for path in source.iterdir() if path.suffix != ".user" and path.name != "META.json"]:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(BadInput, match=f"{source}.*"):
            prepare(layout, source, tmp_path / "data")
        path.write_bytes(content[: len(content) // 2] + b"\xff\n")
        with pytest.raises(BadInput, match=f"{path}"):
            prepare(layout, source, tmp_path / "data")
        path.write_bytes(content)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("layout", ["recformer", "unisrec"])
def test_a_split_of_the_source_s_own_is_reproduced_and_said(tmp_path, layout):
    data = prepared(layout, copied(layout, tmp_path), tmp_path / "data")
    assert [data.item_ids[item] for item in data.open_test()] == ["e", "a", "a", "c"]
    assert [data.item_ids[item] for item in data.validation] == ["d", "e", "b", "b"]
    assert any(rule.startswith("The source brings a split") for rule in data.manifest.rules)
    with pytest.raises(BadInput, match="since needs times"):
        prepare(layout, tmp_path / layout, tmp_path / "other", since=1)
    with pytest.raises(BadInput, match="min_rating needs ratings"):
        prepare(layout, tmp_path / layout, tmp_path / "other", min_rating=1)


@pytest.mark.parametrize("layout", ["amazon", "recbole"])
def test_dates_and_ratings_are_the_source_s(tmp_path, layout):
    source = copied(layout, tmp_path)
    data = prepared(layout, source, tmp_path / "dates", since="2018-01-02", until="2018-01-05")
    assert histories(data) == {user: items[1:4] for user, items in HISTORIES.items() if user != "u4"} | {"u4": "eabc"}
    data = prepared(layout, source, tmp_path / "ratings", min_rating=3.5)
    assert histories(data) == {"u1": "abde", "u2": "bcea", "u3": "cdab", "u4": "debc"}


def test_every_option_is_described():
    for source in SOURCES.values():
        assert all(field.description for field in source.options.model_fields.values())
