import logging
import time

import numpy as np
import pytest
from ax.core.trial_status import TrialStatus

from darec_search.samplers import create
from darec_search.samplers.base import spread
from darec_search.space import Point, SearchSpace


def test_without_fidelities_proposals_are_what_they_were_before_there_were_any() -> None:
    """Recorded with the version before; a search that was begun with it goes on as it would have done."""
    rng, space = np.random.default_rng(7), SearchSpace(3, weights={"align": [0.1, 0.5, 1.0], "collaborative": [0.5]})
    sampler, running, asked = create("ax_bayes", space, 1), [], []
    for number in range(14):
        while len(running) < 3:
            running.append(sampler.ask(running))
            asked.append("".join(map(str, running[-1].bits)) + f"/{running[-1].weights['align']:g}")
        done = running.pop(0)
        if number == 4:
            sampler.tell_failed(done, "out of memory")
            continue
        bits = np.array(done.bits)
        value = bits[::3].sum() - 0.5 * bits[1::3].sum() + 0.3 * bits[2] * bits[5] + sum(done.weights.values())
        sampler.tell(done, float(value + 0.3 * rng.normal()), 0.1 if number == 6 else None)
    assert asked[6:] == [
        "101101100/0.5", "101100100/0.1", "101100100/0.5", "101101100/1", "101101101/0.5", "100100100/1",
        "101100100/1", "101100101/1", "101101101/1", "100101101/1",
    ]  # fmt: skip
    (row,) = sampler.recommend()
    assert row.point == Point((1, 0, 1, 1, 0, 0, 1, 0, 0), {"align": 1.0, "collaborative": 0.5})
    assert row.mean == pytest.approx(float.fromhex("0x1.29519b8c44fdcp+2"), rel=1e-9)


def test_ax_holds_the_experiment() -> None:
    space = SearchSpace(2, weights={"align": [0.1, 0.5]})
    sampler = create("ax_bayes", space, 0)
    first = sampler.ask()
    second = sampler.ask(pending=[first])
    sampler.tell(first, 0.3, stderr=0.01)
    sampler.tell_failed(second, "out of memory")
    third = sampler.ask()
    experiment = sampler.client._experiment
    statuses = [trial.status for trial in experiment.trials.values()]
    assert statuses == [TrialStatus.COMPLETED, TrialStatus.FAILED, TrialStatus.RUNNING]
    assert list(experiment.lookup_data().df[["mean", "sem"]].iloc[0]) == [0.3, 0.01]
    assert experiment.trials[1].status_reason == "out of memory"
    assert experiment.trials[2].arms[0].parameters["align"] == third.weights["align"]


def test_start_designs_are_balanced_and_come_first() -> None:
    space = SearchSpace(12, weights={"align": [0.1, 0.5, 1.0]})
    start = spread(space, 4, 6)
    bits = np.array([point.bits for point in start])
    assert np.all(bits.sum(0) == 3)
    assert sorted(point.weights["align"] for point in start) == [0.1, 0.1, 0.5, 0.5, 1.0, 1.0]
    sampler, running = create("ax_bayes", space, 4), []
    for _ in range(6):
        running.append(sampler.ask(pending=running))
    assert running == start
    assert sampler.ask(pending=running) not in start


def test_the_order_of_results_does_not_matter() -> None:
    space, rng = SearchSpace(4), np.random.default_rng(0)
    results = [(space.sample(rng), float(rng.normal())) for _ in range(15)]
    samplers = [create("ax_bayes", space, 0), create("ax_bayes", space, 0)]
    for sampler, order in zip(samplers, (results, results[::-1]), strict=True):
        for point, value in order:
            sampler.tell(point, value)
    assert samplers[0].ask() == samplers[1].ask()
    assert samplers[0].best() == samplers[1].best()


def test_it_finds_a_planted_architecture() -> None:
    """36 bits, additive, noise a third of the spread: 40 trials find nearly all that matters."""
    space, rng = SearchSpace(12), np.random.default_rng(1)
    effects = np.repeat([1.0, -1.0, 0.5], 12).reshape(3, 12).T.ravel()

    def value(point: Point) -> float:
        return float(effects @ (1 - 2 * np.array(point.bits)))

    sampler = create("ax_bayes", space, 0)
    for _ in range(25):
        point = sampler.ask()
        sampler.tell(point, value(point) + rng.normal() * 1.7)
    assert value(sampler.best()) > 0.8 * np.abs(effects).sum()


def test_ask_is_quick_and_quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    space, rng = SearchSpace(12), np.random.default_rng(0)
    sampler = create("ax_bayes", space, 0)
    with caplog.at_level(logging.INFO):
        for _ in range(30):
            sampler.tell(space.sample(rng), float(rng.normal()))
        pending = [space.sample(rng) for _ in range(4)]
        sampler.ask(pending)
        times = []
        for _ in range(3):
            started = time.process_time()
            sampler.ask(pending)
            times.append(time.process_time() - started)
    assert min(times) < 0.5
    assert not caplog.records
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
