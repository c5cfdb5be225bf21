"""A run's folder at a URL: its checkpoint goes there as it is written, its result before anybody hears of it.

The worker trains in a folder of its own machine. Where it goes on with a run that another machine began, it takes the
newest checkpoint from the URL first. A checkpoint is one object, `checkpoint/<name>.files`, which is there whole or not
at all; with it go the files that the run has left so far, such as the ranks of its best epoch. The first result of a
run counts: whoever comes second takes it over.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from trainer.archive import SUFFIX, Damaged, pack, unpack
from trainer.storage import StorageError, Store, each
from trainer.training.attempts import ATTEMPTS, take_over
from trainer.training.result import RunResult, write_atomic

_RESULT = "result.json"
_CHECKPOINT = "checkpoint"
_ARCHIVE = f".checkpoint{SUFFIX}"

logger = logging.getLogger(__name__)


class SharedRun:
    """The folder of a run at a URL, and this machine's.

    Args:
        url: of the run's folder.
        folder: the one that the run works in.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._store = Store(url)
        self._folder = folder

    def result(self) -> RunResult | None:
        """The result at the URL, if there is one.

        Raises:
            StorageError: if the URL cannot be read.
        """
        found = self._store.read(_RESULT)
        return RunResult.model_validate_json(found) if found is not None else None

    def fetch_checkpoint(self) -> None:
        """Put the newest checkpoint of the URL beside those that are here, if it is newer.

        Raises:
            StorageError: if the URL cannot be read.
        """
        published = self._published()
        if published and published[-1] > max(self._here(), default=""):
            logger.info("%s goes on from %s of another machine", self._folder.name, published[-1])
            self._take(published[-1])

    def publish_checkpoint(self) -> None:
        """Copy the newest checkpoint to the URL and remove older ones there. A failure costs the run nothing now."""
        newest = max(self._here(), default=None)
        archive = self._folder / _ARCHIVE
        try:
            older = self._published()
            if newest is None or newest in older:
                return
            best = [f"{_CHECKPOINT}/{file.name}" for file in (self._folder / _CHECKPOINT).glob("best-*")]
            pack(archive, self._folder, [*self._files(), *best, f"{_CHECKPOINT}/{newest}"])
            self._store.upload(archive, f"{_CHECKPOINT}/{newest}{SUFFIX}")
            self._store.remove(f"{_CHECKPOINT}/{name}{SUFFIX}" for name in older)
        except (StorageError, OSError) as error:
            logger.warning("the checkpoint of %s stays on this machine: %s", self._folder.name, error)
        finally:
            archive.unlink(missing_ok=True)

    def publish_result(self, result: RunResult) -> RunResult:
        """Publish the result, and first all that belongs to it; then the run's checkpoint is of no more use.

        Args:
            result: as it stands in `result.json`.

        Returns:
            The result that counts: this one, or that of a worker that was faster, whose files are taken over.

        Raises:
            StorageError: if it cannot be published; nobody may hear of it then.
        """
        if self.result() is None:
            each(lambda name: self._store.upload(self._folder / name, name), self._files())
            self._store.create(_RESULT, result.model_dump_json(indent=2).encode())
        counts = self.result()
        if counts is not None and counts != result:
            logger.warning("%s has a result of another worker, which counts", self._folder.name)
            files = [name for name in self._store.entries() if "/" not in name and name != _RESULT]
            each(lambda name: self._store.download(name, self._folder / name), files)
            write_atomic(self._folder / _RESULT, counts.model_dump_json(indent=2))
        self._forget_checkpoints()
        return counts or result

    def _forget_checkpoints(self) -> None:
        try:
            self._store.remove(f"{_CHECKPOINT}/{name}{SUFFIX}" for name in self._published())
        except StorageError as error:
            logger.info("a checkpoint of %s is left over: %s", self._folder.name, error)

    def _files(self) -> list[str]:
        """What the run has left beside checkpoints and result."""
        names = (file.name for file in self._folder.iterdir() if file.is_file())
        return [name for name in names if name != _RESULT and not name.startswith((".", "stacks"))]

    def _here(self) -> list[str]:
        return [path.name for path in (self._folder / _CHECKPOINT).glob("epoch-*")]

    def _published(self) -> list[str]:
        """Names of the checkpoints at the URL, the newest last: names sort by epoch and step."""
        names = (name.rpartition("/")[2] for name in self._store.names(_CHECKPOINT))
        return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))

    def _take(self, name: str) -> None:
        (self._folder / _CHECKPOINT).mkdir(parents=True, exist_ok=True)
        # Several workers of one run may do this in one folder.
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".taking-") as temporary:
            archive, unpacked = Path(temporary, "archive"), Path(temporary, "unpacked")
            if not self._store.download(f"{_CHECKPOINT}/{name}{SUFFIX}", archive):
                return
            try:
                unpack(archive, unpacked)
            except Damaged as error:
                logger.warning("checkpoint %s at the URL is not usable (%s)", name, error)
                return
            take_over(self._folder, unpacked)
            for file in [*unpacked.glob("*"), *unpacked.glob(f"{_CHECKPOINT}/*")]:
                if file.is_file() and file.name != ATTEMPTS:
                    file.replace(self._folder / file.relative_to(unpacked))
            # The checkpoint itself comes last: it is what tells that the rest is there.
            whole = self._folder / _CHECKPOINT / name
            try:
                (unpacked / _CHECKPOINT / name).rename(whole)
            except OSError:
                if not whole.exists():
                    raise
