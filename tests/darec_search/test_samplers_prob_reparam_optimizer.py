import numpy as np
import pytest
import torch
from torch import Tensor

from darec_search.samplers.prob_reparam_optimizer import (
    ProbabilisticReparameterization,
    estimate,
    sample,
    score_gradient,
)
from darec_search.space import SearchSpace


def every(space: SearchSpace) -> Tensor:
    return torch.from_numpy(np.stack([space.encode(point) for point in space.points()]))


def rugged(space: SearchSpace, seed: int) -> tuple[Tensor, Tensor]:
    """A random pairwise objective of the one-hot encoding, tabulated: designs [m, D], values [m]."""
    designs = every(space)
    generator = torch.Generator().manual_seed(seed)
    size = max(len(levels) for levels in [(0, 1), *space.weights.values()])
    hot = torch.nn.functional.one_hot(designs.long(), size).to(torch.float64).flatten(1)
    matrix = torch.randn(hot.shape[1], hot.shape[1], generator=generator, dtype=torch.float64)
    return designs, ((hot @ matrix) * hot).sum(1)


def lookup(designs: Tensor, values: Tensor):
    table = {tuple(design.tolist()): value for design, value in zip(designs, values.tolist(), strict=True)}
    return lambda x: torch.tensor([table[tuple(row.tolist())] for row in x], dtype=torch.float64)


def probability(logits: Tensor, designs: Tensor) -> Tensor:
    """p(z | θ) of every design, [m]."""
    log_p = torch.log_softmax(logits, -1)
    return log_p[torch.arange(logits.shape[0]), designs.long()].sum(1).exp()


SPACES = [SearchSpace(4, slots=2), SearchSpace(2, slots=2, weights={"align": [1, 2, 3], "contrastive": [1, 2]})]


@pytest.mark.parametrize("space", SPACES)
def test_monte_carlo_gradient_is_unbiased(space: SearchSpace) -> None:
    designs, values = rugged(space, 0)
    optimizer = ProbabilisticReparameterization(space, starts=1)
    logits = optimizer.initial_logits(np.random.default_rng(0))[0]
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = (0.4 * logits + 0.5 * noise).requires_grad_()
    (probability(logits, designs) * values).sum().backward()
    exact = logits.grad

    acquisition, rng, repeats, count = lookup(designs, values), np.random.default_rng(2), 400, 8
    many = logits.detach().expand(repeats, -1, -1)
    drawn = sample(many, count, rng)
    estimates = score_gradient(many, drawn, acquisition(drawn.flatten(0, 1)).reshape(repeats, count))
    stderr = estimates.std(0) / repeats**0.5
    valid = torch.isfinite(logits)
    z = (estimates.mean(0) - exact)[valid] / stderr[valid].clamp_min(1e-12)
    assert z.abs().max() < 4.5
    assert exact[valid].abs().max() > 10 * stderr[valid].max()


@pytest.mark.parametrize("space", SPACES)
def test_monte_carlo_estimate_agrees_with_enumeration(space: SearchSpace) -> None:
    designs, values = rugged(space, 1)
    optimizer = ProbabilisticReparameterization(space, starts=200)
    logits = 0.5 * optimizer.initial_logits(np.random.default_rng(0))
    exact = torch.stack([(probability(theta, designs) * values).sum() for theta in logits])
    estimates, stderr = estimate(lookup(designs, values), logits, 100, np.random.default_rng(1))
    z = (estimates - exact) / stderr
    assert z.abs().max() < 4.5
    assert 0.85 < z.std() < 1.15  # the standard errors are neither too small nor too large
    assert abs(z.mean()) < 0.25


@pytest.mark.parametrize("seed", range(3))
def test_draw_comes_from_the_theta_of_the_largest_expectation(seed: int) -> None:
    """8 bits, enumerated: after a long ascent θ is nearly a point mass on max α, and so is the draw."""
    designs, values = rugged(SPACES[0], seed)
    optimizer = ProbabilisticReparameterization(SPACES[0], starts=16, steps=150)
    acquisition = lookup(designs, values)
    drawn = optimizer.draw(acquisition, np.random.default_rng(seed))
    order = values.argsort(descending=True)
    assert torch.equal(drawn, designs[order[0]])
    again = optimizer.draw(acquisition, np.random.default_rng(seed), exclude=designs[order[:3]])
    assert not (again == designs[order[:3]]).all(1).any()
    assert optimizer.draw(acquisition, np.random.default_rng(seed), exclude=designs) is None


def test_samples_follow_theta() -> None:
    logits = torch.tensor([[[0.0, 1.0, -torch.inf], [0.3, -0.2, 0.5]]], dtype=torch.float64)
    drawn = sample(logits, 40_000, np.random.default_rng(0))[0]
    for parameter in range(2):
        frequency = torch.bincount(drawn[:, parameter].long(), minlength=3) / len(drawn)
        assert torch.allclose(frequency.double(), torch.softmax(logits[0, parameter], -1), atol=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_ascent_reaches_the_enumerated_maximum(seed: int) -> None:
    """8 bits: the probabilistic objective itself, without any polish, ends at max α in its best start."""
    space = SPACES[0]
    designs, values = rugged(space, seed)
    rng = np.random.default_rng(seed)
    optimizer = ProbabilisticReparameterization(space, starts=16, steps=150)
    with torch.no_grad():
        theta = optimizer.ascend(lookup(designs, values), optimizer.initial_logits(rng), rng)
        reached = torch.stack([(probability(logits, designs) * values).sum() for logits in theta])
    spread = values.max() - values.min()
    assert reached.max() >= values.max() - 0.02 * spread
    assert reached.max() <= values.max() + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_large_space_with_weights_reaches_the_maximum(seed: int) -> None:
    """Too large to be enumerated by the optimiser, small enough to be enumerated here."""
    space = SearchSpace(3, weights={"align": [1, 2, 3, 4], "contrastive": [1, 2, 3]})
    designs, values = rugged(space, seed)
    found, found_values = ProbabilisticReparameterization(space).optimize(
        lookup(designs, values), np.random.default_rng(seed)
    )
    assert space.size > 2048
    assert found_values[0] == pytest.approx(float(values.max()))
    assert space.decode(found[0].numpy()) in space


@pytest.mark.parametrize("layers", [2, 4])
def test_excluded_designs_never_come_back(layers: int) -> None:
    space = SearchSpace(layers, weights={"align": [1, 2]} if layers == 4 else None)
    linear = torch.arange(1.0, 1 + space.bits + len(space.weights), dtype=torch.float64)
    optimizer = ProbabilisticReparameterization(space)
    found, values = optimizer.optimize(lambda x: x @ linear, np.random.default_rng(0))
    assert torch.equal(found[0], torch.ones_like(found[0]))
    again, less = optimizer.optimize(lambda x: x @ linear, np.random.default_rng(0), starts=found, exclude=found[:3])
    assert not (again[:, None] == found[:3]).all(-1).any()
    assert less[0] < values[0]


def test_no_design_left_is_an_empty_answer() -> None:
    space = SearchSpace(1)
    found, values = ProbabilisticReparameterization(space).optimize(
        lambda x: x.sum(1), np.random.default_rng(0), exclude=every(space)
    )
    assert len(found) == len(values) == 0


def test_same_generator_same_answer() -> None:
    space = SearchSpace(8)
    weights = torch.randn(24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answers = [
        ProbabilisticReparameterization(space).optimize(lambda x: ((x @ weights) * x).sum(1), np.random.default_rng(7))[
            0
        ]
        for _ in range(2)
    ]
    assert torch.equal(*answers)
