"""Old studies as prior means: used where they predict, ignored where they do not, and nothing changes without any."""

import numpy as np
import pytest
import torch

from darec_search.samplers import create
from darec_search.samplers.base import Observation
from darec_search.samplers.kernels import StructuredKernels, bank
from darec_search.samplers.prior import PriorMeans, WithPriors
from darec_search.samplers.proposer import Proposer
from darec_search.samplers.surrogate import Data, StructuredMixture, Trend
from darec_search.space import Point, SearchSpace

SPACE = SearchSpace(4)
EFFECTS = np.random.default_rng(1).normal(size=SPACE.bits)


def additive(effects, space=SPACE):
    return lambda x: (1 - 2 * x[:, : space.bits]) @ torch.from_numpy(effects)


def observed(effects, count, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    points = [SPACE.sample(rng) for _ in range(count)]
    return [
        Observation(point, float(effects @ (1 - 2 * np.array(point.bits)) + noise * rng.normal())) for point in points
    ]


def error(proposer, observations):
    """Root mean square error of the posterior mean over random designs, in spreads of the objective."""
    rng = np.random.default_rng(9)
    x = proposer.encode([SPACE.sample(rng) for _ in range(300)])
    truth = additive(EFFECTS)(x)
    return float((proposer.model(observations).mean(x) - truth).square().mean().sqrt() / truth.std())


def test_predictions_are_standardised_and_constants_say_nothing():
    priors = PriorMeans(SPACE, [additive(EFFECTS), lambda x: torch.full((len(x),), 3.0, dtype=torch.float64)])
    rng = np.random.default_rng(3)
    features = priors(torch.from_numpy(np.stack([SPACE.encode(SPACE.sample(rng)) for _ in range(4000)])))
    assert features.shape == (4000, 1)
    assert abs(features.mean()) < 0.1
    assert features.square().mean() == pytest.approx(1.0, abs=0.1)


def test_half_of_the_bank_is_that_of_a_cold_start():
    cold, noise = bank(5, 40, (0.01, 3.0), torch.Generator().manual_seed(0))
    priors = PriorMeans(SPACE, [additive(EFFECTS), additive(EFFECTS[::-1].copy())])
    weightings, ratios, slopes = priors.extend(cold, noise, torch.Generator().manual_seed(0))
    assert torch.equal(weightings[:40, :5], cold)
    assert not weightings[:40, 5:].any()
    assert not slopes[:40].any()
    assert torch.equal(ratios, torch.cat([noise, noise]))
    rho = slopes[40:].sum(1)
    assert (rho.sort().values - (torch.arange(40) + 0.5) / 40).abs().max() < 0.5 / 40
    assert torch.allclose(weightings[40:, :5].sum(1), 1 - rho**2)


def test_the_mixture_is_the_gaussian_process_with_that_mean():
    """One bank entry, against the textbook's formulas."""
    kernels, priors = StructuredKernels(SPACE), PriorMeans(SPACE, [additive(EFFECTS[::-1].copy())])
    both = WithPriors(kernels, priors)
    proposer, observations = Proposer(SPACE), observed(EFFECTS, 15)
    x, new = (
        proposer.encode([o.point for o in observations]),
        proposer.encode([o.point for o in observed(EFFECTS, 7, 1)]),
    )
    y = torch.tensor([o.value for o in observations], dtype=torch.float64)
    weighting = torch.rand(1, len(kernels) + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = StructuredMixture(
        both, Data.of(x, y, [None] * 15), weighting, torch.tensor([0.3]).double(),
        trend=Trend(priors, torch.tensor([[0.6]]).double()),
    )  # fmt: skip

    def covariance(a, b):
        own = torch.einsum("b,bnm->nm", weighting[0, :-1], kernels.gram(a, b))
        return 1 + own + weighting[0, -1] * priors(a) @ priors(b).T

    standardised = (y - y.mean()) / y.std(correction=0)
    solved = torch.linalg.solve(covariance(x, x) + 0.3 * torch.eye(15).double(), standardised - 0.6 * priors(x)[:, 0])
    expected = 0.6 * priors(new)[:, 0] + covariance(new, x) @ solved
    means, variances = model.marginals(new)
    assert torch.allclose(means[0], y.mean() + y.std(correction=0) * expected)
    assert torch.allclose(model.mean(new), means[0])
    model.pending(new[:2])
    assert torch.allclose(model.marginals(new)[0], means)
    assert (model.marginals(new)[1] <= variances + 1e-9).all()


def test_a_related_study_predicts_from_the_first_results_and_an_unrelated_one_is_ignored():
    related = 0.8 * EFFECTS + 0.6 * np.random.default_rng(2).normal(size=SPACE.bits)
    unrelated = np.random.default_rng(3).normal(size=SPACE.bits)
    few, many = observed(EFFECTS, 4, 7), observed(EFFECTS, 24, 7)
    errors = {}
    for name, old in {"cold": None, "related": related, "unrelated": unrelated}.items():
        proposer = Proposer(SPACE, 64)
        if old is not None:
            proposer.learn_from([observed(old, 40, 5)])
        errors[name] = error(proposer, few), error(proposer, many)
    assert errors["related"][0] < 0.8 * errors["cold"][0]
    assert errors["unrelated"][1] < errors["cold"][1] + 0.1


def test_the_useful_one_of_two_old_studies_is_believed():
    proposer, both, alone = Proposer(SPACE, 64), Proposer(SPACE, 64), Proposer(SPACE, 64)
    useful, other = observed(EFFECTS, 40, 5), observed(np.random.default_rng(3).normal(size=SPACE.bits), 40, 6)
    both.learn_from([other, useful])
    alone.learn_from([useful])
    results = observed(EFFECTS, 8, 7)
    assert error(alone, results) < error(both, results) < error(proposer, results)


@pytest.mark.parametrize(("name", "options"), [("ax_bayes", {"bank": 16}), ("prob_reparam", {"kernel": "structured"})])
def test_samplers_that_learn_from_related_problems_keep_their_promises(name, options):
    space = SearchSpace(2, weights={"align": [0.1, 0.5, 1.0], "collaborative": [0.5]})
    rng = np.random.default_rng(0)
    points = [space.sample(rng) for _ in range(12)]
    old = [Observation(Point(p.bits, {"align": 0.5, "collaborative": 0.5}), float(sum(p.bits))) for p in points]
    quick = {"starts": 4, "samples": 8, "steps": 5} if name == "prob_reparam" else {}
    samplers = [create(name, space, 0, **options, **quick) for _ in range(2)]
    for sampler in samplers:
        assert sampler.learns_from_related
        sampler.learn_from([old, old[:6]])
    asked = [samplers[0].ask()]
    if name == "ax_bayes":
        assert sum(asked[0].bits) == max(sum(o.point.bits) for o in old)
    for _ in range(8):
        for sampler in samplers:
            sampler.tell(asked[-1], float(sum(asked[-1].bits)))
        asked.append(samplers[0].ask())
        assert samplers[1].ask() == asked[-1]
    assert len(set(asked)) == len(asked)
    assert samplers[0].best() in asked
    with pytest.raises(ValueError, match="outside"):
        samplers[0].learn_from([[Observation(Point((0,) * 3), 1.0)]])


def test_one_fixed_kernel_does_not_learn_from_related_problems():
    sampler = create("prob_reparam", SPACE, 0)
    assert not sampler.learns_from_related
    with pytest.raises(ValueError, match="does not learn"):
        sampler.learn_from([observed(EFFECTS, 4)])
