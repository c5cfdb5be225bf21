import gpytorch
import numpy as np
import pytest
import torch
from botorch.acquisition import ExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from torch import Tensor

from darec_search.samplers.acquisition import log_expected_improvement
from darec_search.samplers.gaussian_process import FittedGP
from darec_search.samplers.prob_reparam_optimizer import ProbabilisticReparameterization
from darec_search.space import SearchSpace

SPACES = [SearchSpace(3), SearchSpace(2, weights={"align": [0.1, 0.5, 1.0], "contrastive": [1.0]})]


def encoded(space: SearchSpace, count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([space.encode(space.sample(rng)) for _ in range(count)]))


def data(space: SearchSpace, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = encoded(space, 12, seed)
    noise = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, 0.02 + 1e-3 * (x[:, 0] - x[:, 1] + 0.3 * noise)


def plain(space: SearchSpace, x: Tensor, y: Tensor) -> SingleTaskGP:
    """BoTorch as its tutorials use it: levels by hand onto [0, 1], outcomes standardised by the model."""
    model = SingleTaskGP(unit(space, x), y[:, None])
    fit_gpytorch_mll(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def unit(space: SearchSpace, x: Tensor) -> Tensor:
    return x if not space.weights else torch.cat([x[:, :6], x[:, 6:7] / 2, x[:, 7:]], 1)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.filterwarnings("ignore:ExpectedImprovement has known numerical issues")
def test_posterior_and_acquisition_equal_a_plain_botorch_gp(space: SearchSpace) -> None:
    (x, y), new = data(space), encoded(space, 20, 5)
    levels = ProbabilisticReparameterization(space).levels
    ours, theirs = FittedGP(levels, x, y, seed=0), plain(space, x, y)
    means, variances = ours.marginals(new)
    posterior = theirs.posterior(unit(space, new)[:, None])
    assert torch.allclose(means[0], posterior.mean[:, 0, 0], rtol=0, atol=1e-4 * float(y.std()))
    assert torch.allclose(variances[0], posterior.variance[:, 0, 0], rtol=1e-3)
    incumbent = float(y.max())
    expected = ExpectedImprovement(theirs, incumbent)(unit(space, new)[:, None])
    assert torch.allclose(log_expected_improvement(ours, new, incumbent).exp(), expected, rtol=1e-2)


def test_pending_designs_keep_the_mean_and_lower_the_variance() -> None:
    space = SPACES[1]
    (x, y), new, pending = data(space), encoded(space, 20, 5), encoded(space, 2, 6)
    model = FittedGP(ProbabilisticReparameterization(space).levels, x, y, seed=0)
    means, variances = model.marginals(new)
    at_pending = model.marginals(pending)[1]
    model.pending(pending)
    after_means, after_variances = model.marginals(new)
    assert torch.allclose(after_means, means, rtol=0, atol=1e-6 * float(y.std()))
    assert torch.all(after_variances <= variances * (1 + 1e-6))
    assert torch.all(model.marginals(pending)[1] < 0.5 * at_pending)


def test_many_points_are_computed_in_parts() -> None:
    space = SPACES[0]
    model = FittedGP((2,) * 9, *data(space), seed=0, fit_steps=3)
    many = encoded(space, 1100, 1)
    together, apart = model.marginals(many), model.marginals(many[600:700])
    assert torch.allclose(together[0][:, 600:700], apart[0])
    assert torch.allclose(together[1][:, 600:700], apart[1])
