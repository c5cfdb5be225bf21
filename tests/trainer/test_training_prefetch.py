from __future__ import annotations

import itertools
import threading
import time

import pytest

from trainer.training.prefetch import Prefetcher


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_and_the_thread_ends(depth):
    with Prefetcher(range(50), depth) as items:
        assert list(items) == list(range(50))
    assert prefetch_threads() == []


def test_no_more_than_depth_items_are_made_ahead():
    made = []
    with Prefetcher((made.append(n) or n for n in itertools.count()), depth=2) as items:
        wait_until(lambda: len(made) == 2)
        time.sleep(0.05)
        assert len(made) == 2
        assert next(iter(items)) == 0
        wait_until(lambda: len(made) == 3)


def test_an_error_of_the_source_is_raised_in_its_place():
    def source():
        yield 1
        raise ValueError("the second")

    with Prefetcher(source(), depth=4) as items:
        iterator = iter(items)
        assert next(iterator) == 1
        with pytest.raises(ValueError, match="the second"):
            next(iterator)
    assert prefetch_threads() == []


def test_leaving_early_ends_the_thread():
    def interrupted():
        with Prefetcher(itertools.count(), depth=2) as items:
            for item in items:
                if item == 3:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert prefetch_threads() == []
