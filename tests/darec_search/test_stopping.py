"""The stopping rule on curves of known shape: what it may never do, and what it has to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darec_search.space import Point
from darec_search.stopping import EarlyStopping, Finished, below_median, is_foretold, predict, unlikely_to_win
from darec_search.study import Trial
from darec_search.trial import Fidelity, make_spec
from trainer.training.result import RunResult

EPOCHS = 5
RISE = 1 - 0.5 ** np.arange(1, EPOCHS + 1)


def rising(quality: float, rng: np.random.Generator, noise: float = 0.0) -> list[float]:
    """A curve whose height, from the first epoch on, is the trial's quality, up to noise at every epoch."""
    return list(quality * RISE + noise * rng.normal(size=EPOCHS))


def finished(n: int, seed: int = 0, noise: float = 0.1) -> list[Finished]:
    rng = np.random.default_rng(seed)
    curves = [rising(10 + quality, rng, noise) for quality in rng.normal(size=n)]
    return [Finished(curve, max(curve)) for curve in curves]


def best_of(trials: list[Finished]) -> float:
    return max(trial.objective for trial in trials)


@given(
    n=st.integers(2, 40), seed=st.integers(0, 10**6), noise=st.sampled_from([0.0, 0.3, 3.0]), epochs=st.integers(1, 4)
)
@settings(max_examples=100, deadline=None)
def test_the_one_that_is_ahead_is_never_stopped(n, seed, noise, epochs):
    trials = finished(n, seed, noise)
    ahead = [max(trial.curve[epoch] for trial in trials) for epoch in range(epochs)]
    assert not unlikely_to_win(trials, ahead, level=0.5)
    assert not below_median(trials, ahead)


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_clearly_lost_curve_is_stopped(epochs):
    trials = finished(8)
    lost = rising(6, np.random.default_rng(1))[:epochs]
    assert unlikely_to_win(trials, lost, level=0.1)
    assert below_median(trials, lost)


def test_curves_that_foretell_nothing_stop_nothing():
    """A chance of becoming the best that is small for every trial says nothing of this one."""
    rng = np.random.default_rng(3)
    stopped = 0
    for search in range(200):
        trials = [Finished(list(rng.normal(size=3)), float(rng.normal())) for _ in range(6 + search % 25)]
        curve = list(rng.normal(size=1))
        stopped += unlikely_to_win(trials, curve, level=0.1) or is_foretold(trials, curve, share=0.2)
    assert stopped <= 6


def test_the_end_is_foretold_as_soon_as_enough_curves_show_how_it_follows_from_the_start():
    assert not is_foretold(finished(4), [5.0], share=0.2)
    assert is_foretold(finished(12, noise=0.03), [5.0], share=0.2)
    assert not is_foretold(finished(12, noise=2.0), [5.0], share=0.2)


def test_what_lies_far_from_all_that_has_finished_is_not_foretold():
    assert not is_foretold(finished(12, noise=0.03), [12.0], share=0.2)
    assert not is_foretold(finished(12, noise=0.03), [1.0], share=0.2)


@given(
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-1e3, 1e3),
    start=st.floats(3, 6),
    n=st.integers(6, 20),
)
@settings(max_examples=50, deadline=None)
def test_scale_and_origin_of_the_objective_change_nothing(scale, shift, start, n):
    trials = finished(n)
    moved = [Finished([scale * c + shift for c in t.curve], scale * t.objective + shift) for t in trials]
    forecast = predict(trials, [start])
    again = predict(moved, [scale * start + shift])
    size = scale * 10 + abs(shift)
    assert again.mean == pytest.approx(scale * forecast.mean + shift, abs=1e-6 * size)
    assert again.deviation == pytest.approx(scale * forecast.deviation, rel=1e-4)
    best = best_of(trials)
    chance = predict(trials, [start]).chance_above(best)
    assert predict(moved, [scale * start + shift]).chance_above(scale * best + shift) == pytest.approx(chance, rel=1e-3)


def test_the_prediction_agrees_with_the_integral_over_slope_and_noise():
    """Weighted draws from the prior stand for the conjugate posterior."""
    trials = finished(6, seed=4, noise=0.5)
    at = [4.8]
    x, y = np.array([t.curve[0] for t in trials]), np.array([t.objective for t in trials])
    u, v, n = (x - x.mean()) / x.std(), (y - y.mean()) / y.std(), len(trials)
    rng = np.random.default_rng(0)
    # The prior less the half degree that the mean costs is flat in log σ², up to its scale.
    variance = np.exp(rng.uniform(np.log(0.02), np.log(50), 400_000))
    slope = rng.normal(size=len(variance)) * np.sqrt(variance / 0.5)
    squares = np.sum((v - slope[:, None] * u) ** 2, axis=1)
    log_weight = -n / 2 * np.log(variance) - (squares + 1) / (2 * variance)
    weight = np.exp(log_weight - log_weight.max())
    place = (at[0] - x.mean()) / x.std()
    mean = np.average(slope * place, weights=weight)
    spread = np.sqrt(np.average((slope * place - mean) ** 2 + variance * (1 + 1 / n), weights=weight))
    forecast = predict(trials, at)
    assert (forecast.mean - y.mean()) / y.std() == pytest.approx(mean, abs=0.02)
    assert forecast.deviation / y.std() == pytest.approx(spread, rel=0.03)


def test_the_forecast_is_honest():
    """Over many searches the true end lies within one predicted standard deviation about two thirds of the time."""
    within = 0
    for seed in range(300):
        *trials, running = finished(13, seed, noise=0.5)
        forecast = predict(trials, running.curve[:2])
        within += abs(running.objective - forecast.mean) < forecast.deviation
    assert 0.6 < within / 300 < 0.85


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [Finished([1.0, 2.0], 2.0)],
        [Finished([1.0, 2.0], 2.0)] * 5,
        [Finished([1.0, float(i)], float(i)) for i in range(5)],
    ],
    ids=["none", "one", "all alike", "starts alike"],
)
def test_without_anything_to_compare_nothing_is_foretold_or_stopped(trials):
    assert predict(trials, [0.0]) is None
    assert not unlikely_to_win(trials, [0.0], level=0.5)


def test_a_finished_curve_that_patience_cut_short_counts_with_what_it_reached():
    trials = finished(6)
    short = Finished(trials[0].curve[:2], max(trials[0].curve[:2]))
    assert predict([short, *trials[1:]], [1.0, 2.0, 3.0]) is not None


def test_a_trial_is_judged_by_trials_of_its_own_fidelity(tmp_path):
    def trial(number, epochs, quality):
        rows = [{"epoch": k + 1.0, "mrr": float(quality * RISE[k])} for k in range(epochs)]
        fidelity = Fidelity(users_fraction=1.0, epochs=epochs)
        spec = make_spec("s", number, "joint", Point((0, 0, 0)), number, fidelity)
        result = RunResult(status="finished", metrics={"mrr": rows[-1]["mrr"]}, curve=rows)
        return Trial(spec, result, tmp_path / str(number))

    stopping = EarlyStopping("median", "mrr", min_finished=6)
    for number in range(6):
        stopping.ended(trial(number, 3, 10.0 + number))
    poor, poor_but_longer = trial(10, 3, 5.0), trial(11, 4, 5.0)
    assert stopping.look(poor, poor.result.curve[0]) is not None
    assert stopping.look(poor_but_longer, poor_but_longer.result.curve[0]) is None
