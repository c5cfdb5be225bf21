from __future__ import annotations

import itertools

import pytest
import torch
from tiny_models import tiny_opt


@pytest.fixture(scope="session", params=["pre_norm", "post_norm"])
def opt_model(request):
    """A random OPT in float64; the post-norm one is shaped like OPT-350m (projections, no last norm)."""
    return tiny_opt(post_norm=request.param == "post_norm").double()


@pytest.fixture(params=list(itertools.product("SP", repeat=3)), ids="".join)
def bits(request):
    return "".join(request.param)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
