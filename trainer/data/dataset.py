"""A dataset folder: items, users, and the leave-one-out split.

items.parquet        id, sentence, and one column an attribute; a row's position is the item's index everywhere
users.parquet        id; a row's position is the user's index
train.parquet        one list a user: item indices of the training part, oldest first
validation.parquet   one item index a user
test.parquet         one item index a user; sealed: no opening reads it, only `Dataset.unsealed` does
manifest.json        counts, rules, warnings, SHA-256 digests
test_openings.jsonl  when and why the test split was opened, a line each time

At a URL it is the same files. Each machine copies them once, all but the test split, which is read there when it is
opened and never kept.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.cache import cached
from trainer.data.ragged import Ragged, integers, read_table
from trainer.data.strings import Strings
from trainer.errors import BadInput
from trainer.storage import StorageError, Store, each, is_url, local_path, scratch

if TYPE_CHECKING:
    from scipy import sparse

VERSION = 1
MANIFEST = "manifest.json"
_DIGEST_CHUNK = 2**16
OPENINGS = "test_openings.jsonl"
_TEST = "test.parquet"
Split = Literal["validation", "test"]

logger = logging.getLogger(__name__)


class SealedSplit(RuntimeError):  # noqa: N818 - reads as what it is where it is raised
    """Code that may see training and validation data alone asked for the test split."""


class Manifest(BaseModel):
    """What a dataset folder holds and how it came to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(description="Version of the folder's layout.")
    format: str = Field(description="Source format.")
    source: str | None = Field(description="Name of the source folder or file.")
    options: dict[str, object] = Field(description="Options of the source and of the filters, as they were used.")
    users: int
    items: int
    interactions: int = Field(description="All that are left, the held-out ones included.")
    train_interactions: int = Field(description="Those of the training part.")
    figures: dict[str, float] = Field(description="Lengths and item counts, for the eye.")
    rules: list[str] = Field(description="What was done, in order, one sentence each.")
    removed: dict[str, int] = Field(description="What each filter took, by its name.")
    warnings: list[str] = Field(description="What a reader should know, one sentence each.")
    source_files: dict[str, str] = Field(description="SHA-256 of every file read, by its name.")
    digests: dict[str, str] = Field(description="SHA-256 of each part's content: items, users, train, …")
    fingerprint: str = Field(description="SHA-256 over the digests: the identity of the content, whatever the bytes.")


@dataclass(frozen=True, eq=False)
class Dataset:
    """An open dataset or a subset of its users. Make one with `Dataset.open`; its test split is sealed."""

    folder: Path
    manifest: Manifest
    item_ids: Strings
    attributes: dict[str, Strings]
    sentences: Strings
    user_ids: Strings
    train: Ragged
    validation: NDArray[np.int32]
    user_index: NDArray[np.int64]
    test: NDArray[np.int32] | None = None
    """The test items, [users]; None while they are sealed."""
    url: str | None = None
    """Where it lies, if `folder` is this machine's copy."""

    @classmethod
    def open(cls, location: Path | str) -> Dataset:
        """Read a dataset, all but the test split, and check its content against its manifest.

        Args:
            location: its folder or URL.

        Raises:
            BadInput: if there is no dataset, one of an unknown version, or its content is not what was prepared.
            StorageError: if the URL cannot be read.
        """
        if is_url(location):
            url = str(location).rstrip("/")
            return replace(cls.open(_copied(url)), url=url)
        folder = local_path(location)
        manifest = read_manifest(folder)
        try:
            table = read_table(folder / "items.parquet")
            items = {name: Strings(table.column(name)) for name in table.column_names}
            user_ids = Strings(read_table(folder / "users.parquet").column("id"))
            train = Ragged.load(folder / "train.parquet")
            validation = _read_column(folder / "validation.parquet")
        except (OSError, KeyError, pa.ArrowException) as error:
            raise BadInput(f"{folder}: a part of the dataset cannot be read ({error}); prepare it again") from error
        item_ids, sentences = items.pop("id"), items.pop("sentence")
        digests = {
            "items": digest_items(item_ids, sentences, items),
            "users": digest_strings(user_ids),
            "train": digest_integers(train.offsets, train.values),
            "validation": digest_integers(validation),
        }
        for part, digest in digests.items():
            _check(folder, manifest, part, digest)
        pa.default_memory_pool().release_unused()  # what decoding took, and would keep for a next time
        everyone = np.arange(len(user_ids))
        return cls(folder, manifest, item_ids, items, sentences, user_ids, train, validation, everyone)

    @property
    def location(self) -> str:
        """Where it lies for all machines: its URL, or its folder."""
        return self.url or str(self.folder)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole dataset's content, the same for its subsets."""
        return self.manifest.fingerprint

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @property
    def n_users(self) -> int:
        """Number of users of this (sub)set."""
        return len(self.user_ids)

    @property
    def titles(self) -> Strings:
        """Title of every item."""
        return self.attributes["title"]

    def training_matrix(self) -> sparse.csr_matrix:
        """[users, items], 1 where the user has the item in the training part, however often."""
        from scipy import sparse  # half of this module's import time, and opening does not need it

        entries = (np.ones(len(self.train.values), np.float32), (self.train.row_of_value, self.train.values))
        matrix = sparse.csr_matrix(entries, shape=(self.n_users, self.n_items))
        matrix.data[:] = 1
        return matrix

    def training_digest(self) -> str:
        """SHA-256 of all that may be trained on or mined: the items and the training part of this (sub)set.

        The key of everything that is cached; held-out items do not enter it.
        """
        text = self.manifest.digests["items"] + digest_integers(self.train.offsets, self.train.values)
        return hashlib.sha256(text.encode()).hexdigest()

    def subset(self, fraction: float, seed: int) -> Dataset:
        """Draw round(fraction × users) users, at least one (Data_BO); their order and every item stay.

        With one seed a smaller fraction draws a part of what a larger one draws.

        Raises:
            ValueError: if the fraction is not in (0, 1].
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"a fraction of the users is in (0, 1], got {fraction}")
        count = max(1, round(fraction * self.n_users))
        drawn = np.sort(np.random.default_rng(seed).permutation(self.n_users)[:count])
        return replace(
            self,
            user_ids=self.user_ids.take(drawn),
            train=self.train.take(drawn),
            validation=self.validation[drawn],
            user_index=self.user_index[drawn],
            test=None if self.test is None else self.test[drawn],
        )

    def inputs(self, split: Split) -> Ragged:
        """What a model sees before it ranks: the training part, for `test` with the validation item at its end."""
        return self.train if split == "validation" else self.train.append(self.validation)

    def targets(self, split: Split) -> NDArray[np.int32]:
        """The held-out item of each user, [users].

        Raises:
            SealedSplit: for `test`, unless this dataset comes from `unsealed`.
        """
        if split == "validation":
            return self.validation
        if self.test is None:
            raise SealedSplit(
                f"{self.location}: the test split is sealed; a final comparison or an evaluation opens it"
            )
        return self.test

    def unsealed(self, reason: str) -> Dataset:
        """This (sub)set with its test items; the opening is noted where the dataset lies, if that can be written.

        Args:
            reason: who opens it and what for, for the record.

        Raises:
            BadInput: as `open_test`.
        """
        opened = replace(self, test=self.open_test())
        line = json.dumps({"time": time.time(), "reason": reason})
        try:
            if self.url is not None:
                store = Store(self.url)
                store.write(OPENINGS, (store.read(OPENINGS) or b"") + line.encode() + b"\n")
            else:
                with (self.folder / OPENINGS).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        except (OSError, StorageError) as error:
            logger.info("%s: the opening of the test split could not be noted (%s)", self.location, error)
        return opened

    def open_test(self) -> NDArray[np.int32]:
        """Read the test items, [users of this (sub)set]; for `unsealed`, and for checks of what was prepared.

        Raises:
            BadInput: if the split cannot be read or is not what was prepared.
        """
        try:
            items = _read_column(self._test_file())
        except (OSError, KeyError, pa.ArrowException) as error:
            raise BadInput(f"{self.location}/{_TEST}: cannot be read ({error}); prepare the dataset again") from error
        _check(self.folder, self.manifest, "test", digest_integers(items))
        return items[self.user_index]

    def _test_file(self) -> Path | pa.BufferReader:
        if self.url is None:
            return self.folder / _TEST
        content = Store(self.url).read(_TEST)
        if content is None:
            raise FileNotFoundError(f"{self.url}/{_TEST} is not there")
        return pa.BufferReader(content)


def has_dataset(location: Path | str) -> bool:
    """Whether a dataset lies in a folder or at a URL.

    Raises:
        StorageError: if the URL cannot be read.
    """
    if is_url(location):
        return Store(str(location)).read(MANIFEST) is not None
    return (local_path(location) / MANIFEST).exists()


def openings_of(location: Path | str) -> list[dict[str, object]]:
    """When (Unix seconds) and why the test split of a dataset was opened, oldest first."""
    try:
        return [json.loads(line) for line in _read(location, OPENINGS).splitlines()]
    except (OSError, ValueError):
        return []


def read_manifest(location: Path | str) -> Manifest:
    """The manifest of a dataset, which lies in a folder or at a URL.

    Raises:
        BadInput: if there is none, it is damaged, or its version is unknown.
        StorageError: if the URL cannot be read.
    """
    path = f"{str(location).rstrip('/')}/{MANIFEST}"
    try:
        document = json.loads(_read(location, MANIFEST))
        version = document["version"]
    except OSError as error:
        raise BadInput(
            f"{location}: is no dataset folder ({MANIFEST}: {error.strerror or error}); make one with "
            "`darec-search data prepare`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is damaged ({error}); prepare the dataset again") from error
    if version != VERSION:
        raise BadInput(f"{path}: layout version {version} is unknown here (known: {VERSION}); prepare it again")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadInput(f"{path}: is damaged (field {field}); prepare the dataset again") from error


def publish(folder: Path, url: str) -> None:
    """Copy a dataset folder to a URL; the manifest last, since it is what tells that the rest is there.

    Raises:
        StorageError: if it cannot be written.
    """
    store = Store(url)
    names = [file.name for file in folder.iterdir() if file.name != MANIFEST]
    each(lambda name: store.upload(folder / name, name), names)
    store.upload(folder / MANIFEST, MANIFEST)


def _copied(url: str) -> Path:
    """This machine's copy of the dataset at a URL, by fingerprint."""
    key = {"url": url, "fingerprint": read_manifest(url).fingerprint}
    return cached(scratch(), "data", key, lambda folder: _copy(Store(url), folder))


def _copy(store: Store, folder: Path) -> None:
    """Copy a dataset without its test split and look whether it is whole: one that is not must not be kept."""
    names = [name for name in store.entries() if name not in (_TEST, OPENINGS) and "/" not in name]
    each(lambda name: store.download(name, folder / name), names)
    try:
        Dataset.open(folder)
    except BadInput as error:
        raise BadInput(f"{store.url}: is no whole dataset ({error})") from error


def _read(location: Path | str, name: str) -> str:
    if not is_url(location):
        return (local_path(location) / name).read_text(encoding="utf-8")
    content = Store(str(location)).read(name)
    if content is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return content.decode()


def digest_integers(*arrays: NDArray[np.integer]) -> str:
    """SHA-256 of integer arrays, whatever their types and the machine's byte order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{len(array)};".encode())
        for start in range(0, len(array), _DIGEST_CHUNK):
            digest.update(np.ascontiguousarray(array[start : start + _DIGEST_CHUNK], "<i8").tobytes())
    return digest.hexdigest()


def digest_strings(strings: Sequence[str]) -> str:
    """SHA-256 of a list of strings as JSON, which is never whole in memory."""
    digest = hashlib.sha256(b"[")
    for start in range(0, len(strings), _DIGEST_CHUNK):
        part = json.dumps(list(strings[start : start + _DIGEST_CHUNK]), ensure_ascii=False)
        digest.update((", " if start else "").encode() + part[1:-1].encode())
    digest.update(b"]")
    return digest.hexdigest()


def digest_items(ids: Sequence[str], sentences: Sequence[str], attributes: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of the items: ids, sentences, attributes with their names and order."""
    columns = [("id", ids), ("sentence", sentences), *attributes.items()]
    return digest_strings([f"{name}:{digest_strings(values)}" for name, values in columns])


def _check(folder: Path, manifest: Manifest, part: str, digest: str) -> None:
    if manifest.digests.get(part) != digest:
        raise BadInput(
            f"{folder / part}.parquet: does not match the fingerprint in {MANIFEST}: the file was changed after it "
            "was prepared; prepare the dataset again"
        )


def _read_column(path: Path | pa.BufferReader) -> NDArray[np.int32]:
    return integers(read_table(path).column("item").combine_chunks()).astype(np.int32)
