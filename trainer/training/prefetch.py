"""Work ahead of the training thread: items are made on a thread of their own, a bounded number of them ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """The items of an iterable, in its order, made on a thread.

    Use it in a `with` block: leaving the block, for whatever reason, ends the thread before anything else goes on. An
    error of the source is raised where the item would have come. The thread is a daemon, so a process that is told to
    end does not wait for it.

    Args:
        source: makes the items; only the thread touches it.
        depth: items that may be ready and not yet taken.
    """

    def __init__(self, source: Iterable[T], depth: int) -> None:
        self._room = threading.Semaphore(depth)
        self._ready: SimpleQueue[tuple[T, None] | tuple[None, BaseException | None]] = SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(iter(source),), name="prefetch", daemon=True)
        self._thread.start()

    def _fill(self, source: Iterator[T]) -> None:
        try:
            while self._room.acquire() and not self._closed.is_set():
                self._ready.put((next(source), None))
        except StopIteration:
            self._ready.put((None, None))
        except BaseException as error:  # handed over to the thread that waits for the item
            self._ready.put((None, error))

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            self._room.release()
            yield item

    def close(self) -> None:
        """End the thread; what is ready is dropped."""
        self._closed.set()
        self._room.release()
        self._thread.join()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
