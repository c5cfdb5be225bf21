import pytest
from layouts import HISTORIES, copied, edit, histories, prepared

from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.errors import BadInput

HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


def rows(path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]


def test_the_text_is_the_title(tmp_path):
    data = prepared("unisrec", copied("unisrec", tmp_path), tmp_path / "data")
    assert data.item_ids == list("cabed")
    assert data.user_ids == list(HISTORIES)
    assert list(data.attributes) == ["title"]
    assert data.titles[1] == "Copper kettle. Kitchen Kettles. Aldo."


def test_a_text_without_a_title_or_no_text_is_untitled(tmp_path):
    source = copied("unisrec", tmp_path)
    edit(source / "Kitchen.text", lambda text: text.replace("Oak tray. K", ". K").replace("a\tCopper kettle", "q\tPot"))
    data = prepared("unisrec", source, tmp_path / "data")
    assert data.item_ids == list("bed")
    assert data.manifest.warnings == ["2 items have no text or no title in it and count as untitled."]


@pytest.mark.parametrize("order", ["rising", "users apart"])
def test_other_orders_of_the_rows(tmp_path, order):
    source = copied("unisrec", tmp_path)
    path = source / "Kitchen.train.inter"
    lines = rows(path)
    lines = list(reversed(lines)) if order == "rising" else sorted(lines, key=lambda line: -len(line))
    path.write_text(HEADER + "".join(lines))
    path = source / "Kitchen.test.inter"
    path.write_text(HEADER + "".join(reversed(rows(path))))
    assert histories(prepared("unisrec", source, tmp_path / "data")) == HISTORIES


def test_a_user_with_one_training_item_has_no_row_there(tmp_path):
    source = copied("unisrec", tmp_path)
    edit(source / "Kitchen.user2index", lambda text: f"{text}short\t4\n")
    for part, line in (("valid", "4\t1\t2\n"), ("test", "4\t1 2\t0\n")):
        edit(source / f"Kitchen.{part}.inter", lambda text, line=line: text + line)
    assert histories(prepared("unisrec", source, tmp_path / "data")) == HISTORIES | {"short": "abc"}


def test_one_of_several_datasets_by_option(tmp_path):
    source = copied("unisrec", tmp_path)
    for path in list(source.iterdir()):
        (source / path.name.replace("Kitchen", "Other")).write_bytes(path.read_bytes())
    with pytest.raises(BadInput, match=r"holds Kitchen.train.inter and Other.train.inter; say which one by the option"):
        prepare("unisrec", source, tmp_path / "data")
    data = prepared("unisrec", source, tmp_path / "data", train="Other.train.inter")
    assert set(data.manifest.source_files) >= {"Other.text", "Other.item2index"}
    with pytest.raises(BadInput, match=r"Other.text: the name of a training file ends in .train.inter"):
        prepare("unisrec", source, tmp_path / "data", train="Other.text")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("train.inter", "0\t1 2\t0", "0\t1 2", "train.inter, line 2: has 2 fields"),
        ("train.inter", "0\t1 2\t0", "9\t1 2\t0", "train.inter, line 2: '9' is no number of user2index"),
        ("train.inter", "0\t1 2\t0", "0\t1 2\t9", "train.inter, line 2: '9' is no number of item2index"),
        ("train.inter", "0\t1 2\t0", "0\t1 7\t0", "train.inter, line 2: '7' is no number of item2index"),
        ("train.inter", "2\t0 4\t3", "2\t0 1\t3", "train.inter, line 7: the history does not follow"),
        ("train.inter", "item_id_list:", "items:", "train.inter: has no column item_id_list"),
        ("valid.inter", "2\t4 3 1\t2", "2\t4 3 2\t2", "valid.inter, line 4: the history does not follow"),
        ("test.inter", "1\t0 4 3\t1", "1\t0 4 2\t1", "test.inter, line 3: the history does not follow"),
        ("test.inter", "1\t0 4 3\t1\n", "", "test.inter: user 'u2' has 0 rows"),
        ("valid.inter", "2\t4 3 1\t2\n", "2\t4 3 1\t2\n2\t4 3 1\t2\n", "valid.inter: user 'u3' has 2 rows"),
        ("item2index", "a\t1", "a 1", "item2index, line 2: must hold an id, a tab and a number"),
        ("user2index", "u2\t1", "u2\t0", "user2index, line 2: must hold an id, a tab and a number of its own"),
        ("text", "b\tTea", "a\tTea", "text, line 3: item 'a' has a text already"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, old, new, message):
    source = copied("unisrec", tmp_path)
    edit(source / f"Kitchen.{name}", lambda text: text.replace(old, new, 1))
    with pytest.raises(BadInput, match=f"Kitchen.{message}"):
        prepare("unisrec", source, tmp_path / "data")


def write_layout(folder, data: Dataset) -> None:
    """A dataset in UniSRec's layout, histories cut to their newest 50 items."""
    folder.mkdir()
    parts = {part: [HEADER] for part in ("train", "valid", "test")}
    for user, (history, last) in enumerate(zip(data.inputs("test"), data.open_test(), strict=True)):
        whole = [*map(str, history), str(last)]
        for end in range(len(whole) - 1, 0, -1):
            part = {len(whole) - 1: "test", len(whole) - 2: "valid"}.get(end, "train")
            parts[part].append(f"{user}\t{' '.join(whole[max(0, end - 50) : end])}\t{whole[end]}\n")
    for part, lines in parts.items():
        (folder / f"S.{part}.inter").write_text("".join(lines))
    for name, ids in (("user2index", data.user_ids), ("item2index", data.item_ids)):
        (folder / f"S.{name}").write_text("".join(f"{id}\t{number}\n" for number, id in enumerate(ids)))
    text = "".join(f"{id}\t{title}. \n" for id, title in zip(data.item_ids, data.titles, strict=True))
    (folder / "S.text").write_text(f"item_id:token\ttext:token_seq\n{text}", encoding="utf-8")


@pytest.mark.realdata
def test_scientific_comes_back_whole_with_the_same_split(realdata, tmp_path):
    """Three users have more than 50 items, so that no single row holds their histories."""
    prepare("table", realdata / "scientific", tmp_path / "table")
    original = Dataset.open(tmp_path / "table")
    write_layout(tmp_path / "layout", original)
    prepare("unisrec", tmp_path / "layout", tmp_path / "data")
    data = Dataset.open(tmp_path / "data")
    assert data.manifest.warnings == []
    for part in ("users", "train", "validation", "test"):
        assert data.manifest.digests[part] == original.manifest.digests[part]
