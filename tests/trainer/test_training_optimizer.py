from __future__ import annotations

import itertools

import pytest
import torch

from trainer.config import OptimizationConfig
from trainer.training.optimizer import create_optimizer, learning_rate_factor, set_learning_rate


def test_warm_up_is_linear_and_the_cosine_ends_at_zero():
    factors = [learning_rate_factor(step, 100, 0.06) for step in range(101)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert factors[6] == pytest.approx(1.0)
    assert factors[53] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(factors[6:]))


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate_factor(0, 10, 0.0) == 1.0


def test_vectors_are_not_decayed_and_frozen_parameters_not_trained():
    model = torch.nn.Linear(2, 2)
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    optimizer = create_optimizer(torch.nn.Sequential(model, frozen), OptimizationConfig(weight_decay=0.5))
    decayed, free = optimizer.param_groups
    assert (decayed["params"][0] is model.weight, decayed["weight_decay"]) == (True, 0.5)
    assert (free["params"][0] is model.bias, free["weight_decay"]) == (True, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == 2
    set_learning_rate(optimizer, OptimizationConfig(learning_rate=2.0), 0, 1)
    assert {group["lr"] for group in optimizer.param_groups} == {2.0}


def test_parts_have_their_own_rate_and_decay():
    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.item_head, self.da_layers = torch.nn.Linear(2, 3), torch.nn.Linear(2, 2)

    model = Parts()
    config = OptimizationConfig(learning_rate=2.0, rates={"head": 0.1}, decays={"head": 0.3}, weight_decay=0.5)
    optimizer = create_optimizer(model, config)
    assert set_learning_rate(optimizer, config, 0, 1) == 2.0
    found = {
        parameter: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    head, layers = model.item_head, model.da_layers
    assert [found[p] for p in (head.weight, head.bias)] == [(0.2, 0.3), (0.2, 0.0)]
    assert [found[p] for p in (layers.weight, layers.bias)] == [(2.0, 0.5), (2.0, 0.0)]
