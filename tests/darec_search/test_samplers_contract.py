"""What every registered sampler promises, whatever its method."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from darec_search.samplers import SAMPLERS, create
from darec_search.samplers.base import Sampler, Suggestion
from darec_search.space import Point, SearchSpace
from trainer.errors import BadInput

SPACES = {
    "bits": SearchSpace(4),
    "one_layer": SearchSpace(1),
    "weights": SearchSpace(2, weights={"align": [0.1, 0.5, 1.0], "collaborative": [0.5]}),
    "two_points": SearchSpace(1, slots=1),
    "levels": SearchSpace(0, weights={"learning_rate": [1e-4, 1e-3], "hidden": [32, 64, 128]}),
}
Result = tuple[Point, float | None]
QUICK = {"prob_reparam": {"starts": 4, "samples": 8, "steps": 5, "fit_steps": 5}}
"""Budgets that keep the suite short."""


@pytest.fixture(params=list(SAMPLERS))
def make(request: pytest.FixtureRequest) -> Callable[[SearchSpace, int], Sampler]:
    return lambda space, seed: create(request.param, space, seed, **QUICK.get(request.param, {}))


@pytest.fixture(params=list(SPACES))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


def objective(point: Point) -> float:
    of_bits = sum(point.bits[::3]) - 0.5 * sum(point.bits[1::3]) + 0.02 * sum(point.bits[-1:])
    return of_bits + sum(point.weights.values())


def replay(sampler: Sampler, results: Sequence[Result]) -> Sampler:
    for point, value in results:
        if value is None:
            sampler.tell_failed(point, "out of memory")
        else:
            sampler.tell(point, value)
    return sampler


def drawn(space: SearchSpace, count: int, seed: int = 0) -> list[Result]:
    rng = np.random.default_rng(seed)
    points = [space.sample(rng) for _ in range(count)]
    return [(point, None if i % 5 == 4 else objective(point) + 0.1 * rng.normal()) for i, point in enumerate(points)]


def test_proposals_lie_in_the_space_and_none_is_in_flight_twice(
    make: Callable[..., Sampler], space: SearchSpace
) -> None:
    sampler, seen, running = make(space, 0), set[Point](), list[Point]()
    for _ in range(14):
        while len(running) < 3:
            point = sampler.ask(pending=running)
            assert point in space
            if len(seen | set(running)) < space.size:
                assert point not in running
                assert point not in seen
            running.append(point)
        point = running.pop(1)
        seen.add(point)
        sampler.tell(point, objective(point))
    assert sampler.best() in seen


def test_all_designs_are_tried_before_any_repeats(make: Callable[..., Sampler]) -> None:
    space = SearchSpace(1)
    sampler, asked = make(space, 3), []
    for _ in range(space.size):
        asked.append(sampler.ask())
        sampler.tell(asked[-1], objective(asked[-1]))
    assert len(set(asked)) == space.size
    assert sampler.ask() in space
    assert sampler.ask(pending=list(space.points())) in space


@pytest.mark.parametrize("count", [0, 1, 4, 14])
def test_replayed_results_give_the_same_next_point(
    make: Callable[..., Sampler], space: SearchSpace, count: int
) -> None:
    results = drawn(space, count)
    pending = [space.sample(np.random.default_rng(9))]
    lived = make(space, 1)
    for point, value in results:
        lived.ask()  # what was asked and never told leaves no trace
        replay(lived, [(point, value)])
    fresh = replay(make(space, 1), results)
    assert lived.ask(pending) == fresh.ask(pending)
    assert lived.ask(pending) == fresh.ask(pending)
    if any(value is not None for _, value in results):
        assert lived.best() == fresh.best()


def test_the_seed_matters(make: Callable[..., Sampler]) -> None:
    assert len({make(SPACES["bits"], seed).ask() for seed in range(6)}) > 1


def _numpy_state() -> np.ndarray:
    return np.array(np.random.get_state()[1])  # noqa: NPY002 - the global state is what is watched


def test_global_random_state_and_threads_are_left_alone(make: Callable[..., Sampler]) -> None:
    space = SPACES["weights"]
    sampler = replay(make(space, 0), drawn(space, 12))
    before, threads, numbers = torch.get_rng_state(), torch.get_num_threads(), _numpy_state()
    torch.set_num_threads(3)
    first = sampler.ask()
    torch.manual_seed(123)
    disturbed = torch.get_rng_state()
    assert sampler.ask() == first
    assert torch.equal(torch.get_rng_state(), disturbed)
    torch.set_rng_state(before)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(threads)
    assert sampler.ask() == first
    assert np.array_equal(_numpy_state(), numbers)


def test_failures_and_nan_teach_and_never_win(make: Callable[..., Sampler], space: SearchSpace) -> None:
    sampler = make(space, 0)
    failed = [space.sample(np.random.default_rng(seed)) for seed in range(8)]
    for i, point in enumerate(failed):
        if i % 2:
            sampler.tell(point, math.nan)
        else:
            sampler.tell_failed(point, "diverged")
    proposal = sampler.ask()
    assert proposal in space
    if len(set(failed)) < space.size:
        assert proposal not in failed
    with pytest.raises(ValueError, match="no best point"):
        sampler.best()
    sampler.tell(proposal, -5.0)
    assert sampler.best() == proposal
    assert sampler.ask() in space


def test_constant_and_single_values_are_fine(make: Callable[..., Sampler], space: SearchSpace) -> None:
    sampler = make(space, 0)
    for _ in range(12):
        point = sampler.ask()
        sampler.tell(point, 0.25, stderr=0.0)
        assert sampler.best() in space
    assert sampler.ask() in space


def test_results_nobody_asked_for_are_used(make: Callable[..., Sampler]) -> None:
    """A λ grid at one architecture, told before the first question."""
    space = SPACES["weights"]
    sampler = make(space, 0)
    for level in (0.1, 0.5, 1.0):
        sampler.tell(Point((0,) * 6, {"align": level, "collaborative": 0.5}), level)
    assert sampler.best().weights["align"] == 1.0
    asked = [sampler.ask()]
    for _ in range(3):
        sampler.tell(asked[-1], objective(asked[-1]))
        asked.append(sampler.ask())
    assert len({point.bits for point in asked} | {(0,) * 6}) > 2


def test_repeats_count_as_evidence(make: Callable[..., Sampler]) -> None:
    space = SPACES["bits"]
    good, lucky = Point((1,) * 12), Point((0,) * 12)
    sampler = make(space, 0)
    for value in (1.0, 1.1, 0.9, 1.0, 1.05):
        sampler.tell(good, value)
    for value in (1.3, -0.5, -0.6, -0.4):
        sampler.tell(lucky, value)
    assert sampler.best() == good


def test_huge_and_tiny_values_do_not_break_it(make: Callable[..., Sampler]) -> None:
    space = SPACES["bits"]
    for scale in (1e-9, 1e9):
        sampler = make(space, 0)
        for point, value in drawn(space, 12):
            if value is not None:
                sampler.tell(point, 5 * scale + scale * value)
        assert sampler.ask() in space


def test_points_outside_the_space_are_refused(make: Callable[..., Sampler]) -> None:
    sampler, stranger = make(SPACES["bits"], 0), Point((0, 1, 0))
    for call in (
        lambda: sampler.tell(stranger, 1.0),
        lambda: sampler.tell_failed(stranger, "x"),
        lambda: sampler.ask(pending=[stranger]),
    ):
        with pytest.raises(ValueError, match="outside"):
            call()


def test_unknown_names_and_options_are_bad_input(make: Callable[..., Sampler]) -> None:
    with pytest.raises(BadInput, match=r"search\.sampler: 'annealing'.*ax_bayes"):
        create("annealing", SPACES["bits"], 0)
    for name in SAMPLERS:
        with pytest.raises(BadInput, match=r"search\.sampler_options\.colour"):
            create(name, SPACES["bits"], 0, colour="red")
    with pytest.raises(BadInput, match=r"search\.sampler_options\.start"):
        create("ax_bayes", SPACES["bits"], 0, start=0)


def test_recommendations_come_best_first_with_their_values(make: Callable[..., Sampler], space: SearchSpace) -> None:
    results = drawn(space, 14)
    sampler = replay(make(space, 1), results)
    evaluated = {point for point, value in results if value is not None}
    listed = sampler.recommend(3)
    assert len(listed) == min(3, len(evaluated))
    assert listed[0].point == sampler.best()
    assert {row.point for row in listed} <= evaluated
    assert [row.mean for row in listed] == sorted((row.mean for row in listed), reverse=True)
    for row in listed:
        assert row.low is None or row.high is None or row.low < row.mean < row.high
    assert len(sampler.recommend(1000)) == len(evaluated)


def test_a_standard_error_or_repeats_give_an_interval(make: Callable[..., Sampler]) -> None:
    sampler, rng = make(SearchSpace(4), 0), np.random.default_rng(0)
    points = [SearchSpace(4).sample(rng) for _ in range(2)]
    sampler.tell(points[0], 1.0, stderr=0.1)
    for value in (0.1, 0.2, 0.3):
        sampler.tell(points[1], value)
    for row in sampler.recommend(2):
        assert row.low is not None
        assert row.high is not None
        assert row.low < row.mean < row.high


def test_what_failed_by_no_fault_of_its_own_may_be_proposed_once_more(make: Callable[..., Sampler]) -> None:
    space = SearchSpace(1)
    sampler, (lost, *others) = make(space, 0), list(space.points())
    for point in others:
        sampler.tell(point, objective(point))
    sampler.tell_failed(lost, "the worker was lost", by_design=False)
    assert sampler.ask() == lost
    sampler.tell_failed(lost, "the worker was lost", by_design=False)
    assert lost in sampler.history.given_up()
    assert sampler.ask() in space


def test_what_fails_as_often_as_it_ends_well_is_recommended_last(make: Callable[..., Sampler]) -> None:
    sampler = replay(make(SPACES["bits"], 0), drawn(SPACES["bits"], 8))
    top = Point((1, 0, 0) * 4)
    for _ in range(3):
        sampler.tell(top, 10.0)
    assert sampler.best() == top
    for _ in range(3):
        sampler.tell_failed(top, "out of memory")
    assert sampler.best() != top
    assert sampler.recommend(100)[-1].point == top
    sampler.tell(top, 10.0)
    assert sampler.best() == top


def test_without_fidelities_a_suggestion_is_a_question_for_the_target(make: Callable[..., Sampler]) -> None:
    space = SPACES["weights"]
    sampler = replay(make(space, 0), drawn(space, 8))
    running = [space.sample(np.random.default_rng(3))]
    assert sampler.suggest([Suggestion(point) for point in running]) == Suggestion(sampler.ask(running))


def test_cheaper_fidelities_are_learned_from_or_refused_in_a_sentence(make: Callable[..., Sampler]) -> None:
    sampler = make(SPACES["bits"], 0)
    if not sampler.learns_from_fidelities:
        with pytest.raises(ValueError, match="does not learn from cheaper evaluations"):
            sampler.use_fidelities([0.5])
        return
    sampler.use_fidelities([0.5])
    asked = []
    for _ in range(9):
        asked.append(sampler.suggest())
        assert asked[-1].point in sampler.space
        assert asked[-1].fidelity in (0, 1)
        sampler.tell(asked[-1].point, objective(asked[-1].point), fidelity=asked[-1].fidelity)
    assert {suggestion.fidelity for suggestion in asked} == {0, 1}


def test_a_sampler_without_fidelities_is_bad_input_for_a_study_with_them() -> None:
    with pytest.raises(BadInput, match=r"search\.fidelities: random does not learn.*ax_bayes"):
        create("random", SPACES["bits"], 0, costs=[0.5])


def test_a_block_may_be_asked_for_in_parts(make: Callable[..., Sampler]) -> None:
    space = SPACES["weights"]
    sampler = replay(make(space, 0), drawn(space, 8))
    running = [Suggestion(space.sample(np.random.default_rng(3)))]
    whole = sampler.suggest_together(running, 4)
    assert len({suggestion.point for suggestion in (*running, *whole)}) == 5
    assert whole[0] == sampler.suggest(running)
    for cut in (1, 3):
        assert sampler.suggest_together(running, 4 - cut, whole[:cut]) == whole[cut:]
    with pytest.raises(ValueError, match="outside"):
        sampler.suggest_together(running, 1, [Suggestion(Point((0, 1, 0)))])
