"""Failures teach where designs cannot be run, and nothing where they come at random."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darec_search.samplers import create
from darec_search.samplers.feasibility import Feasibility
from darec_search.samplers.kernels import StructuredKernels
from darec_search.space import Point, SearchSpace

SPACE = SearchSpace(4)


def encoded(points):
    return torch.from_numpy(np.stack([SPACE.encode(point) for point in points]))


def outcomes(fails, count, seed=0):
    rng = np.random.default_rng(seed)
    points = [SPACE.sample(rng) for _ in range(count)]
    failed = [fails(point, rng) for point in points]
    return [p for p, f in zip(points, failed, strict=True) if not f], [
        p for p, f in zip(points, failed, strict=True) if f
    ]


def test_a_rule_behind_failures_is_learned():
    good, bad = outcomes(lambda point, rng: point.bits[4] == 1, 30)
    model = Feasibility(StructuredKernels(SPACE), encoded(good), encoded(bad))
    fresh_good, fresh_bad = outcomes(lambda point, rng: point.bits[4] == 1, 60, seed=1)
    fine, broken = model.log_probability(encoded(fresh_good)).exp(), model.log_probability(encoded(fresh_bad)).exp()
    assert fine.min() > broken.max()
    assert fine.mean() > 0.8
    assert broken.mean() < 0.3


def test_failures_without_a_pattern_move_little():
    good, bad = outcomes(lambda point, rng: rng.random() < 0.25, 40)
    model = Feasibility(StructuredKernels(SPACE), encoded(good), encoded(bad))
    chances = model.log_probability(encoded(outcomes(lambda *_: False, 100, seed=1)[0])).exp()
    assert chances.std() < 0.1
    assert chances.mean() == pytest.approx(0.75, abs=0.12)


def test_one_failure_is_no_verdict_on_the_rest():
    good, _ = outcomes(lambda *_: False, 12)
    bad = [Point((1,) * 12)]
    model = Feasibility(StructuredKernels(SPACE), encoded(good), encoded(bad))
    assert model.log_probability(encoded(good)).exp().min() > 0.6


@pytest.mark.parametrize("by_design", [True, False])
def test_the_default_sampler_avoids_what_fails_by_its_own_fault(by_design):
    """All parallel would be best, were it not that one of the bits cannot be: only who learns the rule leaves it."""

    def broken(point):
        return point.bits[4] == 1

    def value(point):
        return sum(point.bits) + 0.3 * rng.normal()

    sampler, rng = create("ax_bayes", SPACE, 0, bank=32), np.random.default_rng(0)
    for _ in range(16):
        point = SPACE.sample(rng)
        if broken(point):
            sampler.tell_failed(point, "out of memory", by_design=by_design)
        else:
            sampler.tell(point, value(point))
    asked = []
    for _ in range(10):
        asked.append(sampler.ask())
        if broken(asked[-1]):
            sampler.tell_failed(asked[-1], "out of memory", by_design=by_design)
        else:
            sampler.tell(asked[-1], value(asked[-1]))
    failures = sum(map(broken, asked))
    assert failures <= 1 if by_design else failures >= 2
    assert not broken(sampler.best())


def test_the_order_of_failures_does_not_matter():
    good, bad = outcomes(lambda point, rng: point.bits[2] == 1, 24)
    samplers = [create("ax_bayes", SPACE, 0, bank=32) for _ in range(2)]
    for sampler, order in zip(samplers, (bad, bad[::-1]), strict=True):
        for point in order:
            sampler.tell_failed(point, "diverged")
        for point in good:
            sampler.tell(point, float(sum(point.bits)))
    assert samplers[0].ask() == samplers[1].ask()


designs = st.lists(st.tuples(*[st.integers(0, 1)] * 12), min_size=1, max_size=12, unique=True)


@settings(max_examples=25, deadline=None)
@given(good=designs, bad=designs, asked=designs)
def test_chances_are_chances_and_an_end_moves_its_own_design_its_way(good, bad, asked):
    good, bad, asked = ([Point(bits) for bits in part] for part in (good, bad, asked))
    kernels, subject = StructuredKernels(SPACE), encoded(asked[:1])
    chances = Feasibility(kernels, encoded(good), encoded(bad)).log_probability(encoded(asked))
    assert torch.isfinite(chances).all()
    assert (chances <= 0).all()
    failed = Feasibility(kernels, encoded(good), torch.cat([encoded(bad), subject])).log_probability(subject)
    ended_well = Feasibility(kernels, torch.cat([encoded(good), subject]), encoded(bad)).log_probability(subject)
    assert failed < ended_well


def searched(fails, trials, seed):
    """Every end of a search in which some designs fail, and the value of its recommendation, noiseless."""
    effects = np.random.default_rng(seed).normal(size=SPACE.bits)
    sampler, rng, ends = create("ax_bayes", SPACE, seed, bank=32), np.random.default_rng(seed), []
    for _ in range(trials):
        point = sampler.ask()
        ends.append(fails(point, rng))
        if ends[-1]:
            sampler.tell_failed(point, "out of memory")
        else:
            sampler.tell(point, effects @ np.array(point.bits) + 0.3 * rng.normal())
    return np.array(ends), effects @ np.array(sampler.best().bits), effects


def test_few_proposals_fail_once_a_rule_has_shown():
    """Any parallel adapter in layer 1 fails, as seven of eight random designs do."""
    ends, value, effects = searched(lambda point, rng: any(point.bits[3:6]), 30, seed=0)
    free = np.delete(effects, [3, 4, 5])
    assert value > 0.8 * free[free > 0].sum() + 0.2 * free[free < 0].sum()
    assert np.mean(ends[ends.cumsum() >= 10][1:]) < 0.5


def test_failures_at_random_hardly_hurt():
    """As many values, got with a quarter of the trials failing on top of them."""
    _, with_failures, effects = searched(lambda point, rng: rng.random() < 0.25, 20, seed=0)
    _, without, _ = searched(lambda *_: False, 15, seed=0)
    assert (without - with_failures) / np.abs(effects).sum() < 0.1
