"""Cheaper evaluations: what the surrogate makes of them, and which the sampler chooses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from darec_search.samplers import create
from darec_search.samplers.acquisition import log_expected_gain, log_expected_improvement
from darec_search.samplers.base import Observation, Suggestion
from darec_search.samplers.fidelity import Links, comparable, draw_links, target_is_due
from darec_search.samplers.kernels import StructuredKernels
from darec_search.samplers.surrogate import Data, StructuredMixture, Trend
from darec_search.space import Point, SearchSpace

SPACE = SearchSpace(4)
KERNELS = StructuredKernels(SPACE)


def points(count: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([SPACE.encode(SPACE.sample(rng)) for _ in range(count)]))


def value(point: Point) -> float:
    return sum(point.bits[::3]) - 0.5 * sum(point.bits[1::3]) + 0.02 * point.bits[-1]


def links(correlation: float, scale: float = 1.0, noise: float = 1.0) -> Links:
    """Of one bank entry and one cheaper fidelity."""
    signal = torch.tensor([[[1.0, scale * correlation], [scale * correlation, scale**2]]], dtype=torch.float64)
    return Links(signal, torch.tensor([[1.0, noise]], dtype=torch.float64))


def model(link: Links | None, x: Tensor, y: Tensor, fidelity: list[int] | None, trend: Trend | None = None):
    weighting = torch.full((1, len(KERNELS)), 1 / len(KERNELS), dtype=torch.float64)
    ratio = torch.tensor([0.2], dtype=torch.float64)
    at = None if fidelity is None else torch.tensor(fidelity)
    data = Data.of(x, y, [None] * len(y), at)
    return StructuredMixture(KERNELS, data, weighting, ratio, trend=trend, links=link)


@settings(max_examples=20, deadline=None)
@given(fidelities=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_every_entry_of_the_bank_is_a_covariance_over_fidelities(fidelities: int, seed: int) -> None:
    drawn = draw_links(24, fidelities, torch.Generator().manual_seed(seed))
    assert torch.allclose(drawn.signal, drawn.signal.transpose(1, 2))
    assert torch.linalg.eigvalsh(drawn.signal).min() > -1e-9
    assert torch.all(drawn.signal[:, 0, 0] == 1)
    assert torch.all(drawn.noise[:, 0] == 1)
    assert torch.all(drawn.noise > 0)
    # the further apart, the less they have in common
    spread = drawn.signal.diagonal(dim1=1, dim2=2).sqrt()
    correlation = drawn.signal / spread[:, :, None] / spread[:, None]
    assert torch.all(correlation[:, 0].diff(dim=1) <= 1e-9)


def test_the_posterior_is_that_of_the_joint_gaussian_written_out() -> None:
    x, new = points(9), points(5, seed=1)
    y, at = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64), [0, 1, 0, 1, 1, 1, 0, 1, 1]
    ours = model(links(0.8, 1.5, 2.0), x, y, at)

    def prior(left: Tensor, s: int, right: Tensor, t: int) -> float:
        own = 1 + float(KERNELS.gram(left[None], right[None]).mean())
        factor = {0: 1.0, 1: 1.5 * 0.8, 2: 1.5**2}[s + t]
        return factor * own + (1.0 if s == t == 1 else 0.0)

    covariance = torch.tensor([[prior(x[i], at[i], x[j], at[j]) for j in range(9)] for i in range(9)]).double()
    noise = torch.tensor([0.2 * (2.0 if s else 1.0) for s in at], dtype=torch.float64)
    standard = (y - y.mean()) / y.std(correction=0)
    inverse = torch.linalg.inv(covariance + torch.diag(noise))
    amplitude = float((standard @ inverse @ standard + 2) / 11)
    for fidelity in (0, 1):
        cross = torch.tensor([[prior(x[i], at[i], p, fidelity) for p in new] for i in range(9)]).double()
        mean = cross.T @ inverse @ standard * y.std(correction=0) + y.mean()
        own = torch.tensor([prior(p, fidelity, p, fidelity) for p in new]).double()
        variance = (own - (cross * (inverse @ cross)).sum(0)) * amplitude * y.var(correction=0)
        means, variances = ours.marginals(new, fidelity)
        assert torch.allclose(means[0], mean, atol=1e-9)
        assert torch.allclose(variances[0], variance, atol=1e-9)
    assert torch.allclose(ours.mean(new), ours.marginals(new)[0][0], atol=1e-9)
    assert torch.allclose(ours.posterior(new[:, None]).mean[:, 0, 0, 0], ours.mean(new), atol=1e-9)


def test_an_unrelated_fidelity_moves_no_belief_about_the_target() -> None:
    x, new = points(12), points(6, seed=2)
    y = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at, other = [0] * 6 + [1] * 6, torch.cat([y[:6], y[6:].flip(0)])  # the same mean and spread
    changes = [
        (model(links(rho), x, y, at).mean(new) - model(links(rho), x, other, at).mean(new)).abs().max()
        for rho in (0.0, 0.5, 1.0)
    ]
    assert changes[0] < 1e-9 < changes[1] < changes[2]


def test_a_prior_mean_reaches_a_cheaper_fidelity_as_far_as_it_is_correlated() -> None:
    """With the objective exactly at the prior means nothing is left to explain."""
    x, new = points(10), points(4, seed=5)
    trend = Trend(lambda at: at[:, :2] - 0.5, torch.tensor([[1.0, -0.7]], dtype=torch.float64))
    at = torch.tensor([0, 1] * 5)
    exact = trend(x)[0] * torch.where(at == 0, 1.0, 1.2 * 0.8)
    y = (exact - exact.mean()) / exact.std(correction=0)
    one = model(links(0.8, 1.2), x, y, at.tolist(), trend)
    plain = model(links(0.8, 1.2), x, y, at.tolist())
    truth = (trend(new)[0] - exact.mean()) / exact.std(correction=0)
    assert (one.mean(new) - truth).abs().mean() < (plain.mean(new) - truth).abs().mean()


def test_what_can_be_learned_is_what_a_pending_evaluation_takes_from_the_variance() -> None:
    x, new = points(9), points(4, seed=6)
    y = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for fidelity in (0, 1):
        ours = model(links(0.7, 0.8, 1.5), x, y, [0, 1, 1] * 3)
        before, fall = ours.marginals(new[:1])[1], ours.learnable(new[:1], fidelity)
        ours.pending(new[:1], torch.tensor([fidelity]))
        assert torch.allclose(ours.marginals(new[:1])[1], before - fall, atol=1e-9)


def test_a_noiseless_evaluation_at_the_target_gains_the_expected_improvement() -> None:
    x, new = points(9), points(4, seed=6)
    y = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = StructuredMixture(
        KERNELS,
        Data.of(x, y, [None] * 9, torch.tensor([0, 1, 1] * 3)),
        torch.full((1, len(KERNELS)), 1 / len(KERNELS), dtype=torch.float64),
        torch.tensor([1e-9], dtype=torch.float64),
        links=links(0.7),
    )
    gain = log_expected_gain(exact, new, 1.0, 0)
    assert torch.allclose(gain, log_expected_improvement(exact, new, 1.0), atol=1e-5)
    assert torch.all(log_expected_gain(exact, new, 1.0, 1) < gain)


def test_observations_are_put_on_the_targets_scale_whatever_their_order() -> None:
    told = [
        Observation(Point((0,)), v, 0.1, fidelity=s) for s in (0, 1) for v in ((1.0, 2.0, 3.0), (40.0, 60.0, 80.0))[s]
    ]
    moved = comparable(told)
    assert [o.value for o in moved] == pytest.approx([1, 2, 3, 1, 2, 3])
    assert [o.stderr for o in moved] == pytest.approx([0.1] * 3 + [0.1 / 20] * 3)
    assert comparable(told[::-1]) == moved[::-1]
    few = comparable([told[0], *told[3:5]])
    assert [o.value for o in few] == pytest.approx([1, -9, 11])
    assert comparable(told[3:]) == told[3:]


def test_the_target_gets_its_share_of_the_costs() -> None:
    costs = (1.0, 0.1)
    assert not target_is_due(costs, [])
    assert target_is_due(costs, [1])
    assert not target_is_due(costs, [0] + [1] * 30)
    assert target_is_due(costs, [0] + [1] * 31)


def searched(correlation: float, seed: int = 0, results: int = 18) -> list[Suggestion]:
    """What a search asks for when the cheaper fidelity costs a quarter and is so related to the target."""
    space, rng = SearchSpace(3), np.random.default_rng(seed)
    sampler = create("ax_bayes", space, seed, costs=[0.25], bank=32)
    other = {point: rng.normal() for point in space.points()}
    asked: list[Suggestion] = []
    for _ in range(results):
        asked.append(sampler.suggest())
        told = value(asked[-1].point) + 0.1 * rng.normal()
        if asked[-1].fidelity:
            told = 5 + 0.5 * (correlation * told + math.sqrt(1 - correlation**2) * other[asked[-1].point])
        sampler.tell(asked[-1].point, told, fidelity=asked[-1].fidelity)
    assert sampler.best() in {suggestion.point for suggestion in asked}
    return asked


def test_a_cheaper_fidelity_is_used_as_far_as_it_foretells_the_target() -> None:
    good = sum(suggestion.fidelity == 1 for suggestion in searched(1.0))
    bad = sum(suggestion.fidelity == 1 for suggestion in searched(0.0))
    assert good > 9
    assert bad < good


def test_a_design_that_was_only_tried_cheaply_can_be_the_best() -> None:
    sampler, rng = create("ax_bayes", SPACE, 0, costs=[0.25], bank=32), np.random.default_rng(1)
    for fidelity in (0, 1) * 6:
        point = SPACE.sample(rng)
        sampler.tell(point, value(point) - 3 * fidelity, fidelity=fidelity)
    top = Point((1, 0, 0) * 4)
    sampler.tell(top, value(top) - 3, fidelity=1)
    (row,) = sampler.recommend()
    assert row.point == top
    assert abs(row.mean - value(top)) < 1


def test_no_design_is_tried_again_at_the_same_fidelity_or_a_cheaper_one() -> None:
    sampler, running, tried = create("ax_bayes", SearchSpace(1), 0, costs=[0.5, 0.2], bank=16), [], {}
    for _ in range(16):
        while len(running) < 3:
            running.append(sampler.suggest(running))
            point, fidelity = running[-1].point, running[-1].fidelity
            if all(tried.get(p, 3) == 0 for p in SearchSpace(1).points()):
                return
            assert fidelity < tried.get(point, 3)
            tried[point] = fidelity
        done = running.pop(0)
        sampler.tell(done.point, sum(done.point.bits) - 0.1 * done.fidelity, fidelity=done.fidelity)


def test_told_the_same_in_any_order_it_goes_on_alike_and_questions_leave_no_trace() -> None:
    rng = np.random.default_rng(2)
    drawn = [SPACE.sample(rng) for _ in range(12)]
    results = [(point, value(point) + rng.normal() / 10, i % 3) for i, point in enumerate(drawn)]
    pending = [Suggestion(SPACE.sample(rng), 1), Suggestion(SPACE.sample(rng), 0)]
    answers = []
    for order in (results, results[::-1]):
        sampler = create("ax_bayes", SPACE, 1, costs=[0.5, 0.2], bank=32)
        for point, told, fidelity in order:
            if order is results and fidelity == 1:
                sampler.suggest()
            sampler.tell(point, told, fidelity=fidelity)
        sampler.tell_failed(SPACE.sample(np.random.default_rng(9)), "out of memory", fidelity=2)
        answers.append((sampler.suggest(pending), sampler.suggest(pending), sampler.recommend(2)))
    assert answers[0] == answers[1]
    assert answers[0][0] == answers[0][1]


def test_the_start_designs_take_the_fidelities_in_turn() -> None:
    sampler, asked = create("ax_bayes", SPACE, 0, costs=[0.5, 0.2]), []
    for _ in range(6):
        asked.append(sampler.suggest(asked))
    assert [suggestion.fidelity for suggestion in asked] == [0, 1, 2, 0, 1, 2]
    plain = create("ax_bayes", SPACE, 0)
    assert asked[0].point == plain.ask()


def test_the_experiment_holds_the_fidelity_of_every_trial() -> None:
    sampler = create("ax_bayes", SPACE, 0, costs=[0.5])
    first, second = sampler.suggest(), None
    second = sampler.suggest([first])
    sampler.tell(first.point, 0.3, fidelity=first.fidelity)
    sampler.tell(second.point, 0.2, fidelity=second.fidelity)
    arms = [trial.arms[0].parameters for trial in sampler.client._experiment.trials.values()]
    assert [arm["fidelity"] for arm in arms] == [first.fidelity, second.fidelity] == [0, 1]
    assert all(trial.status.is_completed for trial in sampler.client._experiment.trials.values())


@pytest.mark.parametrize("costs", [[], [1.0], [0.5, 0.5], [0.2, 0.5], [0.5, 0.0]])
def test_costs_that_do_not_fall_are_refused(costs: list[float]) -> None:
    with pytest.raises(ValueError, match="fall from below 1"):
        create("ax_bayes", SPACE, 0).use_fidelities(costs)


def test_a_fidelity_that_is_none_of_the_search_is_refused() -> None:
    sampler = create("ax_bayes", SPACE, 0, costs=[0.5])
    for call in (
        lambda: sampler.tell(Point((0,) * 12), 1.0, fidelity=2),
        lambda: sampler.tell_failed(Point((0,) * 12), "x", fidelity=-1),
        lambda: sampler.suggest([Suggestion(Point((0,) * 12), 3)]),
    ):
        with pytest.raises(ValueError, match="no fidelity of this search"):
            call()
