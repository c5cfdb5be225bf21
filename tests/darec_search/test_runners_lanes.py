"""How the cost of a trial beyond its training is read from the study folder."""

from pathlib import Path

import pytest

from darec_search.runners.lanes import lane_gaps
from darec_search.runners.train_run import one_line
from darec_search.space import Point
from darec_search.study import Trial
from darec_search.trial import Fidelity, make_spec
from trainer.training.result import Cost, RunResult


def trial(number, worker, started, first_step, ended, stage="joint", attempts=1):
    spec = make_spec("study", number, stage, Point((0, 0, 0)), 0, Fidelity(users_fraction=1, epochs=1))
    cost = Cost(started_at=started, first_step_at=first_step, ended_at=ended)
    return Trial(spec, RunResult(status="finished", cost=cost, worker=worker, attempts=attempts), Path())


def test_gaps_run_from_an_end_to_the_next_first_step_on_the_same_worker():
    trials = [
        trial(0, "a", 0, 5, 10),
        trial(1, "b", 0, 6, 11),
        trial(2, "a", 10.1, 10.5, 20),
        trial(3, "b", 11, 11.2, 20),
    ]
    assert lane_gaps(trials) == [pytest.approx(0.5), pytest.approx(0.2)]


def test_a_wait_for_the_stage_before_is_no_gap():
    trials = [
        trial(0, "a", 0, 1, 10, "weights"),
        trial(1, "b", 0, 1, 15, "weights"),
        trial(2, "a", 15.1, 15.3, 20, "architecture"),
    ]
    assert lane_gaps(trials) == [pytest.approx(0.3)]


def test_cold_and_restarted_trials_have_no_gap():
    trials = [trial(0, "a", 0, 5, 10), trial(1, "b", 12, 18, 20, attempts=2), trial(2, "b", 20, None, 21)]
    assert lane_gaps(trials) == []


def test_an_error_of_ray_becomes_one_line():
    error = RuntimeError("\x1b[36mray::f()\x1b[39m (pid=1)\n  File x\nImportError: no module\n")
    assert one_line(error) == "RuntimeError: ImportError: no module"
    assert one_line(ValueError()) == "ValueError"
