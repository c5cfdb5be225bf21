import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.cache import cached


def write(text):
    return lambda folder: (folder / "text").write_text(text)


def test_the_same_key_is_built_once_whatever_the_order_of_its_fields(tmp_path):
    first = cached(tmp_path, "words", {"a": 1, "b": [2]}, write("built"))
    again = cached(tmp_path, "words", {"b": [2], "a": 1}, write("built again"))
    assert first == again
    assert (first / "text").read_text() == "built"
    assert first.parent == tmp_path / "words"


def test_another_key_or_kind_is_another_folder(tmp_path):
    folders = {cached(tmp_path, kind, {"a": a}, write("x")) for kind in ("words", "numbers") for a in (1, "1", None)}
    assert len(folders) == 6


def test_a_failed_build_leaves_nothing_and_may_be_tried_again(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        cached(tmp_path, "words", {}, fail)
    assert not any(path.is_dir() for path in (tmp_path / "words").iterdir())
    assert (cached(tmp_path, "words", {}, write("whole")) / "text").read_text() == "whole"


def test_concurrent_builders_build_once_and_all_see_a_whole_folder(tmp_path):
    builds = []
    together = threading.Barrier(6)

    def build(folder: Path) -> None:
        builds.append(folder)
        threading.Event().wait(0.05)
        (folder / "text").write_text("whole")

    def ask(_: int) -> str:
        together.wait()
        return (cached(tmp_path, "words", {"k": 1}, build) / "text").read_text()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == ["whole"] * 6
    assert len(builds) == 1


def test_the_loser_of_a_race_drops_its_copy(tmp_path):
    """Without locks (some shared file systems) two builders may both build."""

    def build_while_another_machine_is_faster(folder: Path) -> None:
        (folder / "text").write_text("slow")
        target = tmp_path / "words" / next(p.name[1:-5] for p in folder.parent.glob(".*.lock"))
        target.mkdir()
        (target / "text").write_text("fast")

    folder = cached(tmp_path, "words", {"k": 1}, build_while_another_machine_is_faster)
    assert (folder / "text").read_text() == "fast"
    assert [path.name for path in (tmp_path / "words").iterdir() if path.is_dir()] == [folder.name]


def test_a_key_must_be_json(tmp_path):
    with pytest.raises(TypeError):
        cached(tmp_path, "words", {"k": object()}, write("x"))
