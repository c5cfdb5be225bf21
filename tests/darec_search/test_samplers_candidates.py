"""Blocks: designs chosen one after the other from one look at the surrogate."""

import numpy as np
import pytest
import torch

from darec_search.samplers import create, together
from darec_search.samplers.acquisition import log_expected_gain, log_expected_improvement
from darec_search.samplers.base import Observation, Suggestion
from darec_search.samplers.candidates import Candidates
from darec_search.samplers.proposer import Proposer
from darec_search.space import Point, SearchSpace

SPACE = SearchSpace(6, weights={"align": [0.1, 0.5, 1.0]})
"""Too large to be enumerated."""


def value(point: Point) -> float:
    return sum(point.bits[::3]) - 0.5 * sum(point.bits[1::3]) + sum(point.weights.values())


def drawn(count: int, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [SPACE.sample(rng) for _ in range(count)]


def told(sampler, count: int):
    rng = np.random.default_rng(5)
    for point in drawn(count):
        sampler.tell(point, value(point) + 0.3 * rng.normal())
    return sampler


def test_blocks_grow_with_the_width_and_are_for_samplers_that_gain_by_them() -> None:
    assert [together("ax_bayes", width) for width in (1, 8, 64, 65, 128, 512)] == [1, 1, 1, 4, 8, 32]
    assert together("random", 512) == together("optuna_gp", 512) == 1


@pytest.mark.parametrize("costs", [(1.0,), (1.0, 0.4)])
def test_choosing_one_after_the_other_is_conditioning_on_all_of_them(costs: tuple[float, ...]) -> None:
    proposer, rng = Proposer(SPACE), np.random.default_rng(0)
    proposer.costs = costs
    observations = [
        Observation(point, value(point) + rng.normal(), fidelity=place % len(costs))
        for place, point in enumerate(drawn(20))
    ]
    pending, pool = proposer.encode(drawn(3, 1)), proposer.encode(drawn(12, 2))
    at, incumbent = torch.tensor([0, len(costs) - 1, 0]), 1.0
    model = proposer.model(observations)
    model.pending(pending, at)
    candidates = Candidates(model, pool, incumbent, len(costs))
    chosen = [(4, 0), (7, len(costs) - 1), (4, len(costs) - 1)]
    for place, fidelity in chosen:
        candidates.choose(place, fidelity)
    whole = proposer.model(observations)
    places, fidelities = (torch.tensor(column) for column in zip(*chosen, strict=True))
    whole.pending(torch.cat([pending, pool[places]]), torch.cat([at, fidelities]))
    for fidelity in range(len(costs)):
        gains = log_expected_gain(whole, pool, incumbent, fidelity)
        expected = log_expected_improvement(whole, pool, incumbent) if len(costs) == 1 else gains
        assert torch.allclose(candidates.log_gains(fidelity), expected, atol=1e-6)


@pytest.mark.parametrize("costs", [(), (0.4,)])
def test_a_block_of_a_large_space_is_new_and_can_be_cut_anywhere(costs: tuple[float, ...]) -> None:
    sampler = told(create("ax_bayes", SPACE, 0, costs=costs), 15)
    running = [Suggestion(point) for point in drawn(20, 3)]
    whole = sampler.suggest_together(running, 8)
    assert len({*whole, *running}) == 28
    assert not {suggestion.point for suggestion in whole if suggestion.fidelity == 0} & set(drawn(15))
    fresh = told(create("ax_bayes", SPACE, 0, costs=costs), 15)
    for cut in (1, 5):
        assert fresh.suggest_together(running, 8 - cut, whole[:cut]) == whole[cut:]


def test_the_first_of_a_block_is_what_would_have_been_proposed_alone() -> None:
    sampler = told(create("ax_bayes", SPACE, 0), 15)
    running = [Suggestion(point) for point in drawn(5, 3)]
    assert sampler.suggest_together(running, 3)[0] == sampler.suggest(running)


def test_a_block_that_is_larger_than_what_is_left_is_filled_up() -> None:
    space = SearchSpace(1)
    sampler, points = create("ax_bayes", space, 0), list(space.points())
    for point in points[:4]:
        sampler.tell(point, value(Point(point.bits)))
    block = sampler.suggest_together([Suggestion(points[4])], 5)
    assert {suggestion.point for suggestion in block[:3]} == set(points[5:])
    assert len(block) == 5


def test_failures_keep_designs_out_of_a_block() -> None:
    sampler = create("ax_bayes", SPACE, 0)
    for point in drawn(60):
        if point.bits[0]:
            sampler.tell_failed(point, "out of memory")
        else:
            sampler.tell(point, value(point))
    assert not any(suggestion.point.bits[0] for suggestion in sampler.suggest_together([], 6))


def test_a_block_that_ends_with_draws_draws_each() -> None:
    sampler = told(create("ax_bayes", SPACE, 0, acquisition_optimizer="prob_reparam"), 15)
    assert len({suggestion.point for suggestion in sampler.suggest_together([], 3)}) == 3
