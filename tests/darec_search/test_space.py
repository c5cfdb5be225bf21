import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darec_search.space import WEIGHTS, Point, SearchSpace

levels = st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=6, unique=True).map(sorted)
spaces = st.one_of(
    st.builds(
        SearchSpace,
        layers=st.integers(1, 6),
        slots=st.integers(1, 3),
        weights=st.dictionaries(st.sampled_from(WEIGHTS), levels, max_size=3),
    ),
    st.builds(SearchSpace, st.just(0), weights=st.dictionaries(st.sampled_from(WEIGHTS), levels, min_size=1)),
)


# A busy machine must not fail a property.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(spaces, st.integers(0, 2**32))
def test_encoding_round_trips(space: SearchSpace, seed: int) -> None:
    point = space.sample(np.random.default_rng(seed))
    assert point in space
    assert space.decode(space.encode(point)) == point


@unhurried
@given(spaces, st.integers(0, 2**32))
def test_neighbours_differ_in_one_step_each_once(space: SearchSpace, seed: int) -> None:
    point = space.sample(np.random.default_rng(seed))
    near = list(space.neighbours(point))
    assert len(set(near)) == len(near)
    assert all(abs(space.encode(other) - space.encode(point)).sum() == 1 for other in near)
    assert all(other in space for other in near)
    assert len(near) >= space.bits


def test_points_walks_the_whole_space_once() -> None:
    space = SearchSpace(1, weights={"align": [0.1, 0.5, 1.0]})
    points = list(space.points())
    assert len(set(points)) == len(points) == space.size == 24
    assert all(point in space for point in points)


def test_level_moves_one_step_up_or_down() -> None:
    space = SearchSpace(1, slots=1, weights={"align": [0.1, 0.5, 1.0]})
    near = {point.weights["align"] for point in space.neighbours(Point((0,), {"align": 0.5})) if point.bits == (0,)}
    assert near == {0.1, 1.0}


@pytest.mark.parametrize(
    "point",
    [Point((0, 1), {"align": 0.1}), Point((0, 1, 2), {"align": 0.1}), Point((0, 1, 0)), Point((0, 1, 0), {"align": 7})],
)
def test_what_lies_outside_is_refused(point: Point) -> None:
    space = SearchSpace(1, weights={"align": [0.1, 0.5]})
    assert point not in space
    with pytest.raises(ValueError, match="outside"):
        space.encode(point)


@pytest.mark.parametrize("wrong", [[], [1.0, 1.0], [2.0, 1.0]])
def test_levels_must_rise(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=r"weights\.align"):
        SearchSpace(1, weights={"align": wrong})


def test_sizes_must_be_positive() -> None:
    for layers, slots in itertools.product((0, 1), (0, 1)):
        if layers * slots == 0:
            with pytest.raises(ValueError, match="positive"):
                SearchSpace(layers, slots)
