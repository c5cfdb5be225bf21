import itertools
import time

import numpy as np
import pytest
import torch

from darec_search.samplers import create
from darec_search.samplers.base import Sampler
from darec_search.samplers.prob_reparam_optimizer import estimate, sample, score_gradient
from darec_search.space import Point, SearchSpace

QUICK = {"starts": 6, "samples": 16, "steps": 15, "fit_steps": 20}


def told(sampler: Sampler, count: int, scale: float = 1.0, noise: float = 0.3) -> Sampler:
    rng = np.random.default_rng(0)
    for _ in range(count):
        point = sampler.space.sample(rng)
        sampler.tell(point, scale * (sum(point.bits[::2]) - 2 * point.bits[1] + noise * float(rng.normal())))
    return sampler


@pytest.mark.parametrize("acquisition", ["ei", "log_ei"])
@pytest.mark.parametrize("kernel", ["rbf", "structured"])
def test_objective_and_gradient_agree_with_enumeration(kernel: str, acquisition: str) -> None:
    """8 bits, the sampler's own acquisition: Σ_z p(z|θ) α(z) and its gradient against the Monte-Carlo estimates."""
    space, rng = SearchSpace(4, slots=2), np.random.default_rng(3)
    sampler = told(create("prob_reparam", space, 0, kernel=kernel, acquisition=acquisition), 10)
    alpha = sampler._acquisition([], rng)
    designs = torch.from_numpy(np.stack([space.encode(point) for point in space.points()]))
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    probability = torch.log_softmax(logits, -1)[torch.arange(8), designs.long()].sum(1).exp()
    exact = (probability * alpha(designs)).sum()
    exact.backward()

    repeats, count = 300, 16
    many = logits.detach().expand(repeats, -1, -1)
    means, _ = estimate(alpha, many, count, rng)
    assert abs(means.mean() - exact) < 4 * means.std() / repeats**0.5
    drawn = sample(many, count, rng)
    gradients = score_gradient(many, drawn, alpha(drawn.flatten(0, 1)).reshape(repeats, count))
    stderr = gradients.std(0) / repeats**0.5
    assert ((gradients.mean(0) - logits.grad) / stderr).abs().max() < 4.5
    assert logits.grad.abs().max() > 5 * stderr.max()


def test_units_of_the_objective_do_not_matter() -> None:
    space = SearchSpace(4, weights={"align": [0.1, 0.5, 1.0]})
    proposals = [told(create("prob_reparam", space, 0, **QUICK), 8, scale).ask() for scale in (1.0, 2.0**-30, 2.0**20)]
    assert proposals[0] == proposals[1] == proposals[2]


def test_options_change_the_method() -> None:
    space = SearchSpace(6)
    variants = itertools.product(("rbf", "structured"), ("ei", "log_ei"))
    # Two methods may agree on one draw, hardly on three.
    asked = {
        tuple(
            told(create("prob_reparam", space, seed, kernel=kernel, acquisition=acquisition, **QUICK), 10).ask()
            for seed in range(3)
        )
        for kernel, acquisition in variants
    }
    assert len(asked) == 4


def test_random_designs_come_first() -> None:
    space = SearchSpace(4)
    proposals = [told(create("prob_reparam", space, 0, start=start, **QUICK), 5).ask() for start in (5, 6)]
    assert proposals[0] != proposals[1] == told(create("random", space, 0), 5).ask()


def test_the_default_sampler_can_end_with_a_draw_of_its_theta() -> None:
    space = SearchSpace(12, weights={"align": [0.1, 0.5, 1.0]})
    options = {"acquisition_optimizer": "prob_reparam"}
    drawing, again = (told(create("ax_bayes", space, 0, **options), 12, noise=5.0) for _ in range(2))
    first = drawing.ask()
    assert first in space
    assert first == again.ask()
    assert first not in drawing.history.points()
    assert first != drawing.ask(pending=[first])
    assert first != told(create("ax_bayes", space, 0), 12, noise=5.0).ask()


def test_it_climbs() -> None:
    space, rng = SearchSpace(4), np.random.default_rng(0)
    effects = rng.normal(size=12)

    def value(point: Point) -> float:
        return float(effects @ (1 - 2 * np.array(point.bits))) / float(np.abs(effects).sum())

    sampler = create("prob_reparam", space, 0, **{**QUICK, "steps": 30})
    for _ in range(12):
        point = sampler.ask()
        sampler.tell(point, value(point) + 0.02 * rng.normal())
    assert value(sampler.best()) > 0.7


def test_ask_takes_seconds_at_thirty_results() -> None:
    sampler = told(create("prob_reparam", SearchSpace(12), 0), 30)
    started = time.process_time()
    sampler.ask()
    assert time.process_time() - started < 6
