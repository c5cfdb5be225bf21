import itertools
import math

import gpytorch
import numpy as np
import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf_discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from darec_search.samplers.acquisition import MixtureLogEI
from darec_search.samplers.kernels import StructuredKernels, bank
from darec_search.samplers.surrogate import Data, StructuredMixture
from darec_search.space import SearchSpace

WEIGHTS = {"align": [0.1, 0.5, 1.0], "contrastive": [1.0], "collaborative": [0.1, 0.2, 0.3, 0.4]}
SPACES = [SearchSpace(4), SearchSpace(4, weights=WEIGHTS), SearchSpace(1), SearchSpace(1, slots=1)]


def points(space: SearchSpace, count: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([space.encode(space.sample(rng)) for _ in range(count)]))


@pytest.mark.parametrize("space", SPACES)
def test_every_component_is_a_covariance_with_mean_diagonal_one(space: SearchSpace) -> None:
    kernels, x = StructuredKernels(space), points(space, 40)
    gram = kernels.gram(x, x)
    assert gram.shape == (len(kernels), 40, 40)
    for component in gram:
        assert torch.allclose(component, component.T, atol=1e-12)
        assert torch.linalg.eigvalsh(component).min() > -1e-9
    assert torch.allclose(gram.diagonal(dim1=1, dim2=2), kernels.diagonal(x), atol=1e-12)
    average = kernels.diagonal(points(space, 4000, seed=1)).mean(1)
    assert torch.allclose(average, torch.ones(len(kernels), dtype=torch.float64), atol=0.06)


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 5),
    flipped=st.lists(st.booleans(), min_size=3, max_size=3),
    order=st.permutations(range(3)),
    reverse=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_names_of_slots_and_direction_of_depth_carry_no_meaning(
    layers: int, flipped: list[bool], order: list[int], reverse: bool, seed: int
) -> None:
    """What `parallel` is called in a slot, the slots' order, and where depth begins leave every covariance as it is."""
    kernels, x = StructuredKernels(SearchSpace(layers)), points(SearchSpace(layers), 6, seed)
    bits = x.reshape(6, layers, 3)
    bits = torch.where(torch.tensor(flipped), 1 - bits, bits)[:, :, list(order)]
    moved = (bits.flip(1) if reverse else bits).reshape(6, -1)
    assert torch.allclose(kernels.gram(moved, moved), kernels.gram(x, x), atol=1e-12)


def test_components_match_their_formulas() -> None:
    """Each entry of the table in `kernels.py`, written out literally with loops."""
    space = SearchSpace(3, weights={"align": [1, 2, 3], "contrastive": [1, 2, 3], "collaborative": [1, 2]})
    kernels, (a, b) = StructuredKernels(space), points(space, 2, seed=5)
    z, w = 1 - 2 * a[:9], 1 - 2 * b[:9]
    rho = [math.exp(-((a[9 + i] - b[9 + i]) ** 2) / (2 * 1.5**2)) for i in range(3)]

    def smooth(scale: float) -> float:
        total = 0.0
        for slot, i, j in itertools.product(range(3), range(3), range(3)):
            c = math.exp(-((i - j) ** 2) / (2 * scale**2)) if scale else float(i == j)
            total += (1 + rho[slot]) / 2 * c * z[3 * i + slot] * w[3 * j + slot]
        return float(total) / 9

    pairs = list(itertools.combinations(range(9), 2))
    near = [(i, j) for i, j in pairs if abs(i // 3 - j // 3) <= 1]
    differing = float((z != w).sum())
    expected = {
        "linear": smooth(0),
        "smooth-1.5": smooth(1.5),
        "smooth-5": smooth(5.0),
        "neighbours": float(sum(z[i] * z[j] * w[i] * w[j] for i, j in near)) / len(near),
        "pairs": float(sum(z[i] * z[j] * w[i] * w[j] for i, j in pairs)) / len(pairs),
        "hamming-2": math.exp(-2 * differing / 9) * math.prod(rho),
        "hamming-6": math.exp(-6 * differing / 9) * math.prod(rho),
        "weights": sum(rho) / 3,
    }
    got = dict(zip(kernels.names, kernels.gram(a[None], b[None])[:, 0, 0].tolist(), strict=True))
    assert got == pytest.approx(expected, abs=1e-12)


class _Fixed(gpytorch.kernels.Kernel):
    """1 + one component as a GPyTorch kernel."""

    def __init__(self, kernels: StructuredKernels, component: int) -> None:
        super().__init__()
        self.kernels, self.component = kernels, component

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        gram = 1 + self.kernels.gram(x1, x2)[self.component]
        return gram.diagonal() if diag else gram


@pytest.mark.parametrize(("space", "component"), [(SPACES[0], 1), (SPACES[1], 3), (SPACES[1], 6)])
def test_single_component_equals_a_plain_botorch_gp(space: SearchSpace, component: int) -> None:
    kernels = StructuredKernels(space)
    x, new = torch.unique(points(space, 14), dim=0), points(space, 9, seed=3)
    y = torch.randn(len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    weighting = torch.eye(len(kernels), dtype=torch.float64)[component][None]
    noise = torch.tensor([0.2], dtype=torch.float64)
    ours = StructuredMixture(kernels, Data.of(x, y, [None] * len(x)), weighting, noise)

    standard = (y - y.mean()) / y.std(correction=0)
    covariance = 1 + kernels.gram(x, x)[component] + 0.2 * torch.eye(len(x), dtype=torch.float64)
    amplitude = float((standard @ torch.linalg.solve(covariance, standard) + 2) / (len(x) + 2))
    scale = gpytorch.kernels.ScaleKernel(_Fixed(kernels, component)).double()
    scale.outputscale = amplitude
    plain = SingleTaskGP(
        x,
        standard[:, None],
        train_Yvar=torch.full((len(x), 1), 0.2 * amplitude, dtype=torch.float64),
        covar_module=scale,
        mean_module=gpytorch.means.ZeroMean(),
        outcome_transform=None,
    ).eval()
    with gpytorch.settings.fast_computations(False, False, False), torch.no_grad():
        theirs = plain.posterior(new)
    spread = y.std(correction=0)
    joint = ours.posterior(new[None])
    assert torch.allclose(joint.mean[0, 0], theirs.mean * spread + y.mean(), atol=1e-6)
    assert torch.allclose(
        joint.distribution.covariance_matrix[0, 0], theirs.distribution.covariance_matrix * spread**2, atol=1e-6
    )
    means, variances = ours.marginals(new)
    assert torch.allclose(means[0], theirs.mean[:, 0] * spread + y.mean(), atol=1e-6)
    assert torch.allclose(variances[0], theirs.variance[:, 0] * spread**2, atol=1e-6)


def mixture(space: SearchSpace, count: int = 12, **changes: object) -> tuple[StructuredMixture, Tensor, Tensor]:
    kernels, x = StructuredKernels(space), points(space, count)
    y = 1 - 2 * x[:, 0] + 0.3 * torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weightings, noise = bank(len(kernels), 64, (0.01, 3.0), torch.Generator().manual_seed(0))
    return StructuredMixture(kernels, Data.of(x, y, [None] * count), weightings, noise), x, y


@pytest.mark.parametrize("space", SPACES)
def test_weights_are_the_scaled_marginal_likelihood(space: SearchSpace) -> None:
    """Against the Student-t density of y that the amplitude's prior implies."""
    model, x, y = mixture(space)
    kernels = StructuredKernels(space)
    gram, standard = kernels.gram(x, x), (y - y.mean()) / y.std(correction=0)
    densities = []
    for weighting, ratio in zip(model.weightings, model.noise, strict=True):
        shape = 1 + torch.einsum("b,bnm->nm", weighting, gram) + ratio * torch.eye(len(y), dtype=torch.float64)
        chol = torch.linalg.cholesky(shape)
        distance = torch.linalg.solve_triangular(chol, standard[:, None], upper=False).square().sum()
        densities.append(-(len(y) + 2) / 2 * torch.log1p(distance / 2) - chol.diagonal().log().sum())
    assert torch.allclose(model.weights, torch.softmax(torch.stack(densities), 0), atol=1e-9)
    assert torch.all(model.weights[:-1] >= model.weights[1:])


def test_pending_designs_keep_the_mean_and_lower_the_variance() -> None:
    model, _, _ = mixture(SPACES[1])
    pending, new = points(SPACES[1], 2, seed=8), points(SPACES[1], 20, seed=9)
    means, variances = model.marginals(new)
    at_pending = model.marginals(pending)[1]
    model.pending(pending)
    after_means, after_variances = model.marginals(new)
    assert torch.allclose(after_means, means, atol=1e-9)
    assert torch.all(after_variances <= variances + 1e-9)
    assert torch.all(model.marginals(pending)[1] < 0.9 * at_pending)


@pytest.mark.parametrize("count", [8, 16])
def test_intervals_hold_the_noiseless_value_as_often_as_they_say(count: int) -> None:
    """Over functions, amplitudes and noise drawn from the prior, and for the design that is recommended too."""
    space, generator = SPACES[0], torch.Generator().manual_seed(count)
    kernels = StructuredKernels(space)
    entries = bank(len(kernels), 64, (0.05, 2.0), generator)
    held, held_by_best = [], []
    for seed in range(150):
        x = points(space, count, seed)
        entry = int(torch.randint(64, (1,), generator=generator))
        covariance = 1 + torch.einsum("b,bnm->nm", entries[0][entry], kernels.gram(x, x))
        amplitude = 1 / torch.empty(1, dtype=torch.float64).exponential_(generator=generator)
        factor = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(count, dtype=torch.float64))
        f, noise = torch.randn(2, count, generator=generator, dtype=torch.float64) * amplitude.sqrt()
        f = factor @ f
        data = Data.of(x, f + entries[1][entry].sqrt() * noise, [None] * count)
        model = StructuredMixture(kernels, data, *entries, keep=64)
        low, high = model.interval(x, 0.9)
        inside = (low < f) & (f < high)
        held.append(inside.double().mean())
        held_by_best.append(inside[model.mean(x).argmax()].double())
    assert 0.85 < torch.stack(held).mean() < 0.94
    assert 0.82 < torch.stack(held_by_best).mean() < 0.97


def test_an_interval_has_equal_tails_under_the_mixture() -> None:
    model, _, _ = mixture(SPACES[1])
    new = points(SPACES[1], 4, seed=3)
    means, variances = model.marginals(new)
    low, high = model.interval(new, 0.8)
    student = torch.distributions.StudentT(float(len(model._x) + 2), means[..., None], variances.sqrt()[..., None])
    draws = student.sample(torch.Size([50_000]))[..., 0]
    for end, probability in ((low, 0.1), (high, 0.9)):
        below = model.weights @ (draws < end).double().mean(0)
        assert torch.allclose(below, torch.full_like(below, probability), atol=0.01)


def test_smaller_standard_errors_count_more() -> None:
    space = SPACES[0]
    kernels, x = StructuredKernels(space), points(space, 1).expand(2, -1)
    x = torch.cat([x, points(space, 6, seed=2)])
    y = torch.tensor([1.0, -1.0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    bank_of_one = torch.full((1, len(kernels)), 1 / len(kernels), dtype=torch.float64), torch.tensor([1.0]).double()
    first, second = (
        StructuredMixture(kernels, Data.of(x, y, [*stderr, *[0.3] * 6]), *bank_of_one).mean(x[:1])
        for stderr in ((0.1, 0.9), (0.9, 0.1))
    )
    assert first > 0.1 > -0.1 > second


def test_acquisition_is_the_log_of_the_weighted_mean_improvement() -> None:
    model, _, y = mixture(SPACES[1])
    new = points(SPACES[1], 6, seed=4)
    means, variances = model.marginals(new)
    draws = torch.randn(200_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    incumbent = float(y.median())
    gains = (means + variances.sqrt() * draws - incumbent).clamp_min(0).mean(0)
    got = MixtureLogEI(model, incumbent)(new[:, None])
    assert torch.allclose(got.exp(), model.weights @ gains, rtol=0.03)
    assert torch.isfinite(MixtureLogEI(model, 1e4)(new[:, None])).all()


def test_botorch_can_optimise_over_it() -> None:
    """The model and the acquisition are BoTorch's kind, not only shaped like it."""
    model, _, y = mixture(SPACES[0])
    choices = points(SPACES[0], 50, seed=6)
    acquisition = MixtureLogEI(model, float(y.max()))
    best, value = optimize_acqf_discrete(acquisition, q=1, choices=choices)
    assert value.item() == pytest.approx(acquisition(choices[:, None]).max().item())
    assert (choices == best).all(1).any()


def test_bank_covers_corners_and_noise_above_the_signal() -> None:
    weightings, noise = bank(7, 128, (0.01, 3.0), torch.Generator().manual_seed(0))
    assert torch.allclose(weightings.sum(1), torch.ones(128, dtype=torch.float64))
    assert torch.all(weightings.max(0).values > 0.85)
    assert noise.min() >= 0.01
    assert 2.5 < noise.max() <= 3.0
