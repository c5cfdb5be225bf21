import pytest

from darec_search.samplers import create
from darec_search.samplers.base import Sampler
from darec_search.space import Point, SearchSpace
from trainer.errors import BadInput

LEVELS = {"align": [0.1, 0.5, 1.0], "collaborative": [0.5, 1.0]}


def walk(sampler: Sampler, count: int) -> list[Point]:
    asked = []
    for i in range(count):
        asked.append(sampler.ask())
        sampler.tell(asked[-1], float(i))
    return asked


def test_every_design_once_in_an_order_of_the_seed() -> None:
    space = SearchSpace(1, weights=LEVELS)
    orders = [walk(create("grid", space, seed), space.size) for seed in (0, 1)]
    assert set(orders[0]) == set(orders[1]) == set(space.points())
    assert orders[0] != orders[1]


def test_weights_alone_at_one_architecture() -> None:
    sampler = create("grid", SearchSpace(12, weights=LEVELS), 0, architecture="parallel")
    asked = walk(sampler, 6)
    assert {point.bits for point in asked} == {(1,) * 36}
    assert len({(point.weights["align"], point.weights["collaborative"]) for point in asked}) == 6


def test_after_the_last_design_the_walk_begins_again() -> None:
    sampler = create("grid", SearchSpace(1), 0)
    first = walk(sampler, 8)
    sampler.tell(first[0], 1.0)
    sampler.tell_failed(first[1], "out of memory")
    assert walk(sampler, 6) == first[2:]  # those with fewer results first
    assert sampler.ask() == first[0]
    assert sampler.ask(pending=[first[0]]) == first[1]
    assert sampler.ask(pending=[*first, first[0]]) == first[1]  # all are under way: one that is so least often


def test_results_from_elsewhere_are_not_tried_again() -> None:
    space = SearchSpace(1)
    known = list(space.points())[:5]
    sampler = create("grid", space, 0)
    for point in known:
        sampler.tell(point, 0.0)
    assert set(walk(sampler, 3)).isdisjoint(known)


@pytest.mark.parametrize(
    ("space", "options", "complaint"),
    [
        (SearchSpace(12), {}, r"68,719,476,736 designs, more than 4,096"),
        (SearchSpace(12, weights=LEVELS), {"architecture": "serial", "limit": 5}, r"6 designs, more than 5"),
        (SearchSpace(2), {"architecture": "SPS"}, r"search\.sampler_options\.architecture: .*1 DALayers.*has 2"),
    ],
)
def test_what_does_not_fit_is_refused(space: SearchSpace, options: dict, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        create("grid", space, 0, **options)
