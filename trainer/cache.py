"""A folder of things that are dear to build, found again by the hash of what made them.

The folder may lie at a URL. Then each machine has one of its own, and looks at the URL before it builds: there a thing
is a single object, which is there whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainer.archive import SUFFIX, Damaged, pack, unpack
from trainer.errors import BadInput
from trainer.storage import StorageError, Store, copy_of, is_url, local_path

logger = logging.getLogger(__name__)


def cached(root: Path | str, kind: str, key: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills for `key`, built at most once a machine; with a URL, by the first that needs it.

    `build` fills a temporary folder that is renamed into place, so that a folder that is there is whole. Builders on
    one machine wait for each other; on a shared file system without locks the loser of a race drops its own copy.

    Args:
        root: folder of all caches, or its URL.
        kind: name of the sort of thing, one folder each.
        key: everything the result depends on, JSON values only.
        build: fills the empty folder that it is given.

    Returns:
        `root/kind/<sha256 of key>`, of this machine's copy where the root is a URL.

    Raises:
        TypeError: if the key holds something that JSON does not know.
        StorageError: if the URL cannot be read.
    """
    if is_url(root):
        url = str(root)
        return cached(copy_of(url, "cache"), kind, key, lambda folder: _found_or_built(url, kind, key, folder, build))
    root = local_path(root)
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    folder = root / kind / hashlib.sha256(text.encode()).hexdigest()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / f".{folder.name}.lock"):
        if not folder.is_dir():
            _build(folder, text, build)
    return folder


def _found_or_built(
    url: str, kind: str, key: Mapping[str, object], folder: Path, build: Callable[[Path], None]
) -> None:
    """Fill a folder with what another machine has built, else build it and leave it for the others."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    store, name = Store(url), f"{kind}/{hashlib.sha256(text.encode()).hexdigest()}{SUFFIX}"
    archive = folder.parent / f"{folder.name}{SUFFIX}"
    try:
        if store.download(name, archive):
            try:
                unpack(archive, folder)
            except Damaged as error:
                raise BadInput(f"{url}/{name}: is damaged ({error}); remove it, and it is built again") from error
            return
        build(folder)
        pack(archive, folder, [file.name for file in folder.iterdir()])
        try:
            store.upload(archive, name)
        except StorageError as error:  # such as where this machine may only read
            logger.warning("%s; other machines will build it again", error)
    finally:
        archive.unlink(missing_ok=True)


def _build(folder: Path, key: str, build: Callable[[Path], None]) -> None:
    logger.info("building %s/%s", folder.parent.name, folder.name[:12])
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:12]}."))
    try:
        build(temporary)
        (temporary / "key.json").write_text(key, encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (isinstance(error, OSError) and folder.is_dir()):
            raise


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.info("%s cannot be locked (%s); a concurrent builder may repeat the work", path, error)
        yield
