"""Effects of adapters and loss weights: exact, calibrated, and found where there are some."""

import itertools

import numpy as np
import pytest
import torch

from darec_search.samplers.base import Observation
from darec_search.samplers.effects import Effects
from darec_search.samplers.kernels import StructuredKernels, bank
from darec_search.samplers.proposer import Proposer
from darec_search.space import SearchSpace

SPACE = SearchSpace(2, weights={"align": (0.1, 0.3, 1.0), "contrastive": (0.1,), "collaborative": (0.01, 0.1)})
SHARES = {"align": (0.2, 0.5, 0.3), "contrastive": (1.0,), "collaborative": (0.75, 0.25)}
X = torch.from_numpy(np.stack([SPACE.encode(point) for point in SPACE.points()]))
Z = 1 - 2 * X[:, : SPACE.bits]
PROBABILITY = (
    torch.tensor(SHARES["align"])[X[:, 6].long()] * torch.tensor(SHARES["collaborative"])[X[:, 8].long()]
).double() / 2**SPACE.bits
"""Of each design of the space."""


def functionals(space: SearchSpace = SPACE) -> dict[str, torch.Tensor]:
    """What every effect is, as [designs] weights of f, by enumeration."""
    found = {f"bit {i}": -2 * Z[:, i] * PROBABILITY for i in range(6)}
    pairs = itertools.combinations(range(6), 2)
    found |= {f"pair {i} {j}": 4 * Z[:, i] * Z[:, j] * PROBABILITY for i, j in pairs}
    for level, share in enumerate(SHARES["align"]):
        at_level = torch.where(X[:, 6] == level, PROBABILITY / share, 0)
        found[f"level {level}"] = at_level - PROBABILITY
    return found


def observations(values, count=25, seed=0):
    chosen = np.random.default_rng(seed).choice(len(X), count)
    return [Observation(SPACE.decode(X[i].numpy()), float(values[i])) for i in chosen]


def test_effects_are_the_functionals_of_the_joint_posterior_over_the_whole_space():
    """By enumeration of all 384 designs."""
    rng = np.random.default_rng(1)
    values = (
        (Z @ torch.from_numpy(rng.normal(size=6))).numpy() + Z[:, 0].numpy() * Z[:, 3].numpy() + rng.normal(size=len(X))
    )
    told = observations(values)
    effects = Effects(SPACE, told)
    got = [*effects.adapters(SHARES), *effects.pairs(SHARES).values(), *effects.levels("align", SHARES)]
    v = torch.stack(list(functionals().values()))
    model = Proposer(SPACE).model_for_effects(told)
    joint = model.posterior(X[None])
    means = joint.mean[0, :, :, 0] @ v.T
    variances = torch.einsum("fm,cmk,fk->cf", v, joint.distribution.covariance_matrix[0], v)
    expected = torch.stack([model.weights @ means, *model._quantiles(means, variances, 0.9)], 1)
    rows = torch.tensor([[effect.mean, effect.low, effect.high] for effect in got], dtype=torch.float64)
    assert torch.allclose(rows, expected, atol=1e-6)


def test_a_loss_weight_at_one_architecture():
    """Its level's posterior mean at that architecture less the average there, by enumeration."""
    told = observations(np.sin(X.sum(1).numpy()), seed=3)
    bits = told[0].point.bits
    here = (X[:, :6] == torch.tensor(bits)).all(1)
    means = Proposer(SPACE).model_for_effects(told).mean(X)
    probability = PROBABILITY * 2**6
    average = (means * probability)[here].sum()
    for level, effect in enumerate(Effects(SPACE, told).levels_at(bits, "align", SHARES)):
        at_level = here & (X[:, 6] == level)
        assert effect.mean == pytest.approx(
            float((means * probability)[at_level].sum() / SHARES["align"][level] - average)
        )
        assert effect.low < effect.mean < effect.high


def test_intervals_hold_the_effects_of_functions_drawn_from_the_prior():
    kernels, generator = StructuredKernels(SPACE), torch.Generator().manual_seed(0)
    weightings, noise = bank(len(kernels), 256, (0.01, 3.0), torch.Generator().manual_seed(2024))
    gram, v = kernels.gram(X, X), torch.stack(list(functionals().values()))
    inside, clear = [], []
    for seed in range(20):
        entry = int(torch.randint(256, (1,), generator=generator))
        covariance = 1 + torch.einsum("b,bnm->nm", weightings[entry], gram) + 1e-9 * torch.eye(len(X))
        f = torch.linalg.cholesky(covariance) @ torch.randn(len(X), generator=generator, dtype=torch.float64)
        noisy = f + noise[entry].sqrt() * torch.randn(len(X), generator=generator, dtype=torch.float64)
        effects = Effects(SPACE, observations(noisy, 30, seed))
        got = [*effects.adapters(SHARES), *effects.pairs(SHARES).values(), *effects.levels("align", SHARES)]
        truth = (v @ f).tolist()
        inside += [effect.low <= true <= effect.high for effect, true in zip(got, truth, strict=True)]
        clear += [
            effect.mean * true > 0 for effect, true in zip(got, truth, strict=True) if effect.low * effect.high > 0
        ]
    assert 0.86 < np.mean(inside) < 0.95
    assert np.mean(clear) > 0.9


def test_planted_effects_are_found_in_a_space_of_twelve_layers():
    """Three effects and an interaction among 36 adapters, from 60 noisy results."""
    space, rng = SearchSpace(12), np.random.default_rng(0)
    told = []
    for _ in range(60):
        point = space.sample(rng)
        bit = point.bits
        value = 3 * bit[4] - 2 * bit[20] + 2 * bit[33] + 4 * (bit[7] - 0.5) * (bit[8] - 0.5) + 0.5 * rng.normal()
        told.append(Observation(point, value))
    effects = Effects(space, told)
    adapters = effects.adapters({})
    assert {i for i, effect in enumerate(adapters) if abs(effect.mean) > 0.9} == {4, 20, 33}
    for i, true in ((4, 3), (20, -2), (33, 2)):
        assert adapters[i].low * adapters[i].high > 0
        assert np.sign(adapters[i].mean) == np.sign(true)
    pairs = effects.pairs({})
    assert len(pairs) == 630
    assert max(pairs, key=lambda pair: abs(pairs[pair].mean)) == (7, 8)


def test_one_adapter_has_no_pairs():
    effects = Effects(SearchSpace(1, slots=1), [Observation(SearchSpace(1, slots=1).decode([1]), 1.0)])
    assert effects.pairs({}) == {}
    assert len(effects.adapters({})) == 1
