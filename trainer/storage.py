"""Files on shared storage: any fsspec URL (`s3://`, `gs://`, …) beside the local folders that all else works with.

What lies at a URL is copied to this machine's scratch folder, worked on there, and published file by file. A local path
or a `file://` URL is used where it lies, without a copy.

An object is written by one request, so whoever reads it sees the old one or the new one whole. Object stores can also
create one *if it is not there yet*, in one step; on a local file system a hard link does that. Credentials and
endpoints come from where the store's own library looks for them (for S3 the AWS environment and configuration files),
never from us.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import BadInput

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocols whose library is an extra of this package."""
_CONDITIONAL = frozenset(_EXTRAS)
"""Protocols known to create an object in one step only where there is none; fsspec's others look first, then write."""
_PASSWORD = re.compile(r"[^/@]*:[^/@]*@")
_TRANSFERS = 16
"""Files under way at a time."""
_TAGS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""Where fsspec's file systems say which version of a file this is, the surest first."""


class StorageError(RuntimeError):
    """Shared storage did not do what was asked: one sentence."""


@contextmanager
def reached() -> Iterator[None]:
    """For the time before anything is spent: storage that cannot be used is bad input."""
    try:
        yield
    except StorageError as error:
        raise BadInput(str(error)) from error


def is_url(location: str | Path) -> bool:
    """Whether a location is on shared storage, not in a folder of this machine."""
    return isinstance(location, str) and "://" in location and not location.startswith("file://")


def local_path(location: str | Path) -> Path:
    """The path of a local location, be it a path or a `file://` URL."""
    return Path(location.removeprefix("file://")) if isinstance(location, str) else location


def absolute(location: str) -> str:
    """A location that means the same in every process: a URL as it is, a path from the root."""
    return location.rstrip("/") if is_url(location) else str(local_path(location).absolute())


def without_credentials(location: str) -> str:
    """A location, unless it is a URL with a password or options in it.

    Raises:
        ValueError: if it is.
    """
    protocol, _, rest = location.partition("://")
    if is_url(location) and (_PASSWORD.match(rest) or "?" in rest):
        raise ValueError(
            f"{protocol}://…: credentials and options have no place in a URL that is written down; give them by the "
            "environment"
        )
    return location


def scratch() -> Path:
    """This user's folder for copies of what lies at URLs, inside the folder for temporary files (`TMPDIR`).

    Raises:
        BadInput: if it cannot be made, or somebody else made it.
    """
    folder = Path(tempfile.gettempdir(), f"darec-search-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made ({error.strerror}); let TMPDIR name another folder") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise BadInput(f"{folder}: others may write there; remove it, or let TMPDIR name another folder")
    return folder


def copy_of(url: str, kind: str) -> Path:
    """Where this machine keeps its copy of what lies at a URL."""
    url = url.rstrip("/")
    return scratch() / kind / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def run_folder(folder: str, url: str | None, config: Mapping[str, Any]) -> Path:
    """Where this machine works on a run: in its folder, or with a URL in one of its own, by URL and config."""
    if url is None:
        return Path(folder)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    return copy_of(url, "runs") / digest


@dataclass(frozen=True)
class Entry:
    """A file at a URL."""

    size: int
    """Bytes."""
    tag: str
    """Another one for another content."""


class Objects(Protocol):
    """Small files by name, created in one step where there is none: what a lease needs of a storage."""

    def read(self, name: str) -> bytes | None:
        """The content; None if there is no such file."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none yet; whether it was this call that did."""
        ...

    def names(self, under: str) -> list[str]:
        """Names of the files below a folder."""
        ...


class Folder:
    """`Objects` in a local folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        self._put(name, data, lambda temporary, file: temporary.replace(file))

    def create(self, name: str, data: bytes) -> bool:
        (self._path / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._put(name, data, lambda temporary, file: os.link(temporary, file))
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return self._create_exclusively(name, data)
        return True

    def names(self, under: str) -> list[str]:
        try:
            return [f"{under}/{file.name}" for file in (self._path / under).iterdir() if file.name[0] != "."]
        except FileNotFoundError:
            return []

    def _put(self, name: str, data: bytes, finish: Callable[[Path, Path], object]) -> None:
        file = self._path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.parent / f".{file.name}.{uuid.uuid4().hex}"
        try:
            temporary.write_bytes(data)
            finish(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    def _create_exclusively(self, name: str, data: bytes) -> bool:
        try:
            with (self._path / name).open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True


class Store:
    """A folder at a URL; names in it are relative paths with slashes.

    Every method raises `StorageError` where the storage does not answer or forbids it.

    Args:
        url: of the folder; it need not exist.

    Raises:
        BadInput: if no library knows such URLs, or the URL holds a password.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        self._protocol = url.partition("://")[0]
        try:
            without_credentials(url)
        except ValueError as error:
            raise BadInput(str(error)) from error
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            extra = _EXTRAS.get(self._protocol)
            how = f"`pip install 'darec-search[{extra}]'`" if extra else str(error)
            raise BadInput(f"{self.url}: the library for {self._protocol}:// is not installed; {how}") from error
        except ValueError as error:
            raise BadInput(f"{self.url}: {self._protocol}:// is no storage that fsspec knows") from error

    def require_create(self) -> None:
        """Check that `create` is one step here.

        Raises:
            BadInput: if fsspec only looks first and writes then.
        """
        if self._protocol not in _CONDITIONAL:
            raise BadInput(
                f"{self.url}: {self._protocol}:// cannot hold a study, because nothing there creates a file only where "
                f"there is none; use one of {', '.join(sorted(_CONDITIONAL))}, or a folder"
            )

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        with self._asked("read", name):
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, data: bytes) -> None:
        """Write a file; readers see the old or the new one."""
        with self._asked("write", name):
            self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none yet; whether it was this call that did."""
        with self._asked("write", name):
            for attempt in range(3):
                try:
                    self._fs.pipe_file(self._path(name), data, mode="create")
                    return True
                except FileExistsError:
                    return False
                except OSError as error:
                    status = _status(error)
                    if status == 412:
                        return False
                    if status != 409 or attempt == 2:  # 409: another one is creating it in this very moment
                        raise
        raise AssertionError("unreachable")

    def names(self, under: str) -> list[str]:
        """Names of the files below a folder."""
        return list(self.entries(under))

    def entries(self, under: str = "") -> dict[str, Entry]:
        """The files below a folder, or the one of that very name, by name."""
        with self._asked("list", under):
            try:
                found: Mapping[str, Any] = self._fs.find(self._path(under), detail=True)
            except FileNotFoundError:
                return {}
        files = {
            path[len(self._root) + 1 :]: Entry(int(info["size"]), _tag(info))
            for path, info in found.items()
            if info["type"] == "file"
        }
        # A store may hold any names; those that would leave the folder they are copied to are none of ours.
        return {name: entry for name, entry in files.items() if not {"", ".", ".."} & set(name.split("/"))}

    def upload(self, file: Path, name: str) -> Entry:
        """Write a local file to the store, by one request that takes effect at its end."""
        with self._asked("write", name):
            self._fs.put_file(str(file), self._path(name))
            info = self._fs.info(self._path(name))
        return Entry(int(info["size"]), _tag(info))

    def download(self, name: str, file: Path) -> bool:
        """Copy a file of the store to a local one, which is never there by half; False if there is none."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.parent / f".{file.name}.{uuid.uuid4().hex}"
        try:
            with self._asked("read", name):
                try:
                    self._fs.get_file(self._path(name), str(temporary))
                except FileNotFoundError:
                    return False
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are no error."""
        with self._asked("remove", ""):
            for name in names:
                try:
                    self._fs.rm_file(self._path(name))
                except FileNotFoundError:
                    continue

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _asked(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not isinstance(error, (OSError, *_library_errors())):
                raise
            where = f"{self.url}/{name}" if name else self.url
            text = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(f"{where}: cannot {what} ({text[:200]})") from error


def each(work: Callable[[str], object], names: Iterable[str]) -> None:
    """Do the same for many files, several at a time; the first error is raised when all have ended."""
    with ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="storage") as pool:
        for future in [pool.submit(work, name) for name in names]:
            future.result()


def _tag(info: Mapping[str, Any]) -> str:
    return next((f"{name}={info[name]}" for name in _TAGS if info.get(name) is not None), "")


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, if there is one."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if isinstance(code := getattr(error, "code", None), int):
            return code
        error = error.__cause__
    return None


def _library_errors() -> tuple[type[Exception], ...]:
    """Errors of the stores' libraries that are no OSError: missing credentials, no answer, no bucket by that name."""
    import sys

    found: list[type[Exception]] = []
    modules = {
        "botocore.exceptions": ("BotoCoreError", "ClientError"),
        "aiohttp": ("ClientError",),
        "gcsfs.retry": ("HttpError",),
        "google.auth.exceptions": ("GoogleAuthError",),
    }
    for module, names in modules.items():
        if module in sys.modules:  # whoever has not loaded it cannot raise it
            found += [getattr(sys.modules[module], name) for name in names]
    return tuple(found)
