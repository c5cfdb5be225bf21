import io

import pytest
from rich.console import Console

from darec_search.console import ConsoleObserver, verdict
from darec_search.runners.base import DoneEvent
from trainer.training.result import Cost, RunResult


def rows(**mrr):
    return [{"name": name, "mrr": value} for name, value in mrr.items()]


@pytest.mark.parametrize(
    ("table", "arm", "said"),
    [
        (
            rows(winner=0.22, serial=0.2, parallel=0.1, popularity=0.05, neighbours=0.1),
            "best-1",
            "The winner: +10.0% test MRR against serial, the better fixed arm; better than both references without "
            "training.",
        ),
        (
            rows(winner=0.2, parallel=0.1, popularity=0.05, neighbours=0.3),
            "serial",
            "The winner: the fixed arm serial, since the search found nothing better; +100.0% test MRR against "
            "parallel, the other fixed arm; neighbours (no training) still ranks better: it is not worth its cost yet.",
        ),
        (
            rows(winner=0.1, parallel=0.2, popularity=0.15, neighbours=0.3),
            "best-2",
            "The winner: -50.0% test MRR against parallel, the only fixed arm that finished; popularity and neighbours "
            "(no training) still rank better: it is not worth its cost yet.",
        ),
        (
            [*rows(winner=0.3), *rows(**{"best-1": 0.2}), *rows(serial=0.25, parallel=0.1, popularity=0.05)],
            "best-1",
            "The winner: +50.0% test MRR by the prior from counts; without it -20.0% test MRR against serial, the "
            "better fixed arm; better than both references without training.",
        ),
        (
            [{"name": "winner", "mrr": 0.3, "prior": True}, *rows(serial=0.25, neighbours=0.2)],
            "best-1",  # whose training without the prior failed
            "The winner: better than both references without training.",
        ),
        (
            rows(winner=0.3, serial=0.2, parallel=0.1, neighbours=0.4),
            "serial",
            "The winner: the fixed arm serial, since the search found nothing better; +50.0% test MRR by the prior "
            "from counts; without it +100.0% test MRR against parallel, the other fixed arm; neighbours (no training) "
            "still ranks better: it is not worth its cost yet.",
        ),
    ],
)
def test_the_verdict_says_what_it_was_compared_with(table, arm, said):
    assert verdict(table, arm) == said


def result(mrr, seconds):
    status = "failed" if mrr is None else "finished"
    return RunResult(status=status, metrics={"mrr": mrr or 0.0}, reason="broken", cost=Cost(wall_s=seconds))


def test_a_resumed_part_begins_where_it_stopped():
    out = io.StringIO()
    with ConsoleObserver(Console(file=out, width=200), slots=2) as observer:
        observer.stage("search", 5, [result(0.5, 10.0), result(None, 10.0)])
        observer.event(DoneEvent("abc", result(0.25, 10.0)))
        observer.stage("test split")
    first, second, third = (line[20:] for line in out.getvalue().splitlines())  # after date and time
    assert first == "search: 5 runs, 2 done before"
    assert second == "  3/5 abc validation MRR 0.2500, 10.0 s"
    assert third == "test split"


def test_a_live_bar_tells_best_and_time_left():
    out = io.StringIO()
    with ConsoleObserver(Console(file=out, width=200, force_terminal=True), slots=2) as observer:
        observer.stage("search", 6, [result(0.5, 10.0)])
        observer.event(DoneEvent("abc", result(None, 20.0)))
    shown = out.getvalue()
    assert "2/6" in shown
    assert "best MRR 0.5000" in shown
    assert "about 30 s left" in shown
