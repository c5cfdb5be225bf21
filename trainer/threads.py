"""One torch thread for small models and matrices: threads that wait for each other cost minutes on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_thread() -> Iterator[None]:
    """Run the block on one thread, then restore torch's thread count. Results then do not depend on it either."""
    with of_threads(1):
        yield


@contextmanager
def of_threads(count: int) -> Iterator[None]:
    """Run the block on so many threads, then restore torch's thread count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
