"""Files at URLs, on a real S3-compatible server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.archive import Damaged, unpack
from trainer.cache import cached
from trainer.data.dataset import Dataset, SealedSplit, has_dataset, openings_of, read_manifest
from trainer.data.prepare import prepare
from trainer.errors import BadInput
from trainer.storage import Folder, StorageError, Store, absolute, is_url, reached, scratch


@pytest.fixture(params=["s3", "folder"])
def objects(request, tmp_path):
    """An object store and a local folder, which do the same."""
    return Store(f"{request.getfixturevalue('bucket')}/study") if request.param == "s3" else Folder(tmp_path / "study")


def test_what_is_written_is_read_and_listed(objects):
    assert objects.read("a/b.json") is None
    assert objects.names("a") == []
    objects.write("a/b.json", b"one")
    objects.write("a/b.json", b"two")
    assert objects.read("a/b.json") == b"two"
    assert objects.names("a") == ["a/b.json"]


def test_of_many_that_create_a_file_one_wins(objects):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: objects.create("a/lease", str(number).encode()), range(8)))
    assert won.count(True) == 1
    assert objects.read("a/lease") == str(won.index(True)).encode()
    assert objects.names("a") == ["a/lease"]


def test_files_go_there_and_back_and_change_their_tag(bucket, tmp_path):
    store, file = Store(bucket), tmp_path / "file"
    file.write_bytes(b"first")
    first = store.upload(file, "folder/file")
    assert (first.size, store.entries()) == (5, {"folder/file": first})
    file.write_bytes(b"other")
    assert store.upload(file, "folder/file").tag != first.tag
    assert store.download("folder/file", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"other"
    store.remove(["folder/file", "never/there"])
    assert not store.download("folder/file", tmp_path / "again")
    assert store.entries() == {}


def test_a_transfer_that_breaks_leaves_nothing_by_half(bucket, tmp_path, monkeypatch):
    store = Store(bucket)
    store.write("file", b"whole")

    def breaks(path: str, file: str) -> None:
        Path(file).write_bytes(b"wh")
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(store._fs, "get_file", breaks)
    with pytest.raises(StorageError, match=r"file: cannot read \(connection reset by peer\)"):
        store.download("file", tmp_path / "here" / "file")
    assert list((tmp_path / "here").iterdir()) == []


def test_storage_that_cannot_be_used_is_told_in_a_sentence(bucket, monkeypatch):
    with (
        pytest.raises(BadInput, match=r"s3://no-such-bucket-at-all/x: cannot write \(.*bucket does not exist"),
        reached(),
    ):
        Store("s3://no-such-bucket-at-all").write("x", b"")
    with pytest.raises(BadInput, match="credentials and options have no place in a URL"):
        Store("s3://key:secret@bucket/study")
    with pytest.raises(BadInput, match="ftps3:// is no storage that fsspec knows"):
        Store("ftps3://bucket/study")
    with pytest.raises(BadInput, match=r"gs:// is not installed; `pip install 'darec-search\[gcs\]'`"):
        Store("gs://bucket/study")
    with pytest.raises(BadInput, match="memory:// cannot hold a study"):
        Store("memory://study").require_create()


def test_names_that_would_leave_the_folder_are_not_seen(bucket):
    store = Store(f"{bucket}/study")
    for name in ("../outside", "a/../../outside", "a//b", "fine"):
        store._fs.pipe_file(f"{store._root}/{name}", b"x")
    assert list(store.entries()) == ["fine"]


def test_locations():
    assert is_url("s3://b/x")
    assert not is_url("runs/x")
    assert not is_url("file:///runs/x")
    assert absolute("s3://b/x/") == "s3://b/x"
    assert absolute("file:///runs/x") == "/runs/x"
    assert absolute("x") == str(Path("x").absolute())


def test_the_scratch_folder_is_this_users_alone(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert scratch().stat().st_mode & 0o777 == 0o700
    scratch().chmod(0o777)
    with pytest.raises(BadInput, match="others may write there"):
        scratch()


@pytest.fixture
def dataset(bucket) -> str:
    url = f"{bucket}/data/shop"
    prepare("synthetic", None, url, users=60, items=80, seed=1)
    return url


def test_a_dataset_at_a_url_is_copied_once_without_its_test_split(dataset, tmp_path, monkeypatch):
    found = Dataset.open(dataset)
    assert (found.location, found.n_users) == (dataset, read_manifest(dataset).users)
    copies = sorted(path.name for path in scratch().rglob("*.parquet"))
    assert copies == ["items.parquet", "train.parquet", "users.parquet", "validation.parquet"]
    monkeypatch.setattr(Store, "download", None)  # nothing more is
    assert Dataset.open(dataset).folder == found.folder


def test_its_test_split_is_opened_where_it_lies_and_noted_there(dataset):
    found = Dataset.open(dataset)
    with pytest.raises(SealedSplit):
        found.targets("test")
    assert openings_of(dataset) == []
    assert len(found.subset(0.5, 0).unsealed("a first look").targets("test")) == round(found.n_users / 2)
    found.unsealed("a second look")
    assert [note["reason"] for note in openings_of(dataset)] == ["a first look", "a second look"]
    assert not list(scratch().rglob("test.parquet"))


def test_a_dataset_that_is_prepared_again_is_copied_again(dataset):
    before = Dataset.open(dataset)
    prepare("synthetic", None, dataset, users=60, items=80, seed=2)
    assert Dataset.open(dataset).fingerprint != before.fingerprint
    assert (before.folder / "items.parquet").exists()  # for whoever still reads it


def test_a_dataset_that_is_not_whole_is_refused_and_not_kept(dataset):
    store = Store(dataset)
    train = store.read("train.parquet")
    store.remove(["train.parquet"])
    with pytest.raises(BadInput, match=f"{dataset}: is no whole dataset"):
        Dataset.open(dataset)
    store.write("train.parquet", train)
    Dataset.open(dataset)


def test_a_dataset_is_not_written_among_other_files(bucket):
    Store(f"{bucket}/mine").write("thesis.tex", b"years of work")
    with pytest.raises(BadInput, match="holds other files and no dataset"):
        prepare("synthetic", None, f"{bucket}/mine", users=60, items=80)
    assert not has_dataset(f"{bucket}/mine")


def test_a_cache_at_a_url_is_filled_once_for_all_machines(bucket, tmp_path, another_machine):
    def build(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "text").write_text("built")

    first = cached(f"{bucket}/cache", "words", {"a": 1}, build)
    another_machine()
    again = cached(f"{bucket}/cache", "words", {"a": 1}, lambda folder: pytest.fail("built twice"))
    assert again != first
    assert (again / "deep" / "text").read_text() == (first / "deep" / "text").read_text() == "built"
    Store(f"{bucket}/cache").remove(Store(f"{bucket}/cache").entries())
    assert cached(f"{bucket}/cache", "words", {"a": 1}, lambda folder: pytest.fail("built twice")) == again


def test_a_cache_that_cannot_be_written_serves_this_machine(bucket, monkeypatch, caplog):
    def refuse(file: Path, name: str) -> None:
        raise StorageError(f"{name}: cannot write (Access Denied)")

    monkeypatch.setattr(Store, "upload", lambda self, file, name: refuse(file, name))
    folder = cached(f"{bucket}/cache", "words", {}, lambda folder: (folder / "text").write_text("built"))
    assert (folder / "text").read_text() == "built"
    assert "Access Denied" in caplog.text


def head(*files: tuple[str, int]) -> bytes:
    text = json.dumps(files).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (head(("../evil", 4)) + b"evil", "names '../evil'"),
        (head(("/evil", 4)) + b"evil", "names '/evil'"),
        (head(("", 4)) + b"evil", "names ''"),
        (head(("evil", 5)) + b"evil", "cut short"),
        (head(("evil", 3)) + b"evil", "more in it"),
        (b"no archive at all", "no archive"),
        (bytes(8), "head cannot be read"),
    ],
)
def test_a_damaged_archive_is_refused_and_writes_nothing_outside_its_folder(tmp_path, content, why):
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "here" / "in").mkdir(parents=True)
    with pytest.raises(Damaged, match=why):
        unpack(tmp_path / "archive", tmp_path / "here" / "in")
    assert not list((tmp_path / "here").glob("*vil"))


def test_a_damaged_thing_in_the_cache_is_told_and_not_kept(bucket, another_machine):
    store = Store(f"{bucket}/cache")
    cached(store.url, "words", {}, lambda folder: (folder / "text").write_text("built"))
    (name,) = store.entries()
    store.write(name, store.read(name)[:-1])
    another_machine()
    with pytest.raises(BadInput, match=rf"{name}: is damaged \(it is cut short\); remove it"):
        cached(store.url, "words", {}, lambda folder: None)
    store.remove([name])
    assert (cached(store.url, "words", {}, lambda folder: (folder / "text").write_text("x")) / "text").exists()
