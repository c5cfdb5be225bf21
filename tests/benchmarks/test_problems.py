"""The search problems: optima, drawing, and what is made of measured trainings."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from problems import PROBLEMS, draw, landscapes, tables


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_design_beats_the_optimum_and_a_seed_draws_the_same_problem(name):
    problem, again = draw(name, 3), draw(name, 3)
    rng = np.random.default_rng(0)
    points = [problem.space.sample(rng) for _ in range(200)]
    values = np.array([problem.at(point) for point in points])
    assert values.max() <= problem.optimum + 1e-9
    assert values.tolist() == [again.at(point) for point in points]
    assert abs(np.mean([problem.score(point) for point in points])) < 0.2


def test_ackley_falls_with_the_distance_from_its_optimum():
    rng = np.random.default_rng(4)
    _, value, optimum = tables.ackley(rng)
    best = np.zeros(tables.BITS)
    for i in range(tables.BITS):  # each bit alone tells its side
        flipped = best.copy()
        flipped[i] = 1
        best = flipped if value(flipped[None])[0] > value(best[None])[0] else best
    assert value(best[None])[0] == optimum
    away = np.array([np.where(np.arange(tables.BITS) < h, 1 - best, best) for h in range(tables.BITS)])
    assert (np.diff(value(away)) < 0).all()


def test_labs_is_the_merit_factor():
    _, value, optimum = tables.labs(np.random.default_rng(0))
    x = np.random.default_rng(1).integers(0, 2, (5, tables.BITS)).astype(float)
    for row, found in zip(x, value(x), strict=True):
        s = 1 - 2 * row
        energy = sum(sum(s[i] * s[i + k] for i in range(len(s) - k)) ** 2 for k in range(1, len(s)))
        assert found == pytest.approx(len(s) ** 2 / (2 * energy))
    assert optimum == pytest.approx(7.902, abs=1e-3)


def test_a_measured_landscape_is_recovered_from_a_part_of_it():
    rng = np.random.default_rng(2)
    everything = np.array(list(itertools.product((0.0, 1.0), repeat=9)))
    truth = everything @ rng.normal(size=9) + everything[:, 0] * everything[:, 4]
    measured = rng.permutation(len(everything))[:200]
    noisy = truth[measured] + rng.normal(0, 0.3, 200)
    found = landscapes.fitted(everything[measured], noisy)
    assert np.corrcoef(found, truth)[0, 1] > 0.97


def test_a_complete_landscape_is_looked_up():
    table = pq.read_table(landscapes.FOLDER / "synthetic.parquet").to_pandas()
    measured = table.groupby(["bits", "seed"])["mrr"].max().groupby("bits").mean()
    firsts = set()
    for seed in range(8):
        problem = draw("landscape_synthetic", seed)
        values = [problem.at(point) for point in problem.space.points()]
        assert sorted(values) == pytest.approx(sorted(measured))
        assert problem.optimum == pytest.approx(measured.max())
        firsts.add(values[0])
    assert len(firsts) > 2  # no design is the same one under every seed
