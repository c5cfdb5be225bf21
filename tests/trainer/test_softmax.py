from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import softmax
from trainer.softmax import item_cross_entropy, sampled_cross_entropy

ROWS, ITEMS, SIZE = 23, 40, 6


@pytest.fixture
def problem():
    torch.manual_seed(0)
    states = torch.randn(ROWS, SIZE, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(SIZE, ITEMS).double()
    return states, head, torch.randint(0, ITEMS, (ROWS,)), torch.rand(ROWS, dtype=torch.float64)


def gradients(total, states, head):
    return torch.autograd.grad(total, [states, head.weight, head.bias])


@pytest.mark.parametrize("logits_at_a_time", [1, 7 * ITEMS, 10**9])
def test_blocks_change_nothing(problem, monkeypatch, logits_at_a_time):
    states, head, targets, weights = problem
    monkeypatch.setattr(softmax, "_LOGITS_AT_A_TIME", logits_at_a_time)
    total, losses = item_cross_entropy(states, head, targets, weights)
    expected = cross_entropy(head(states), targets, reduction="none")
    torch.testing.assert_close(losses, expected.detach())
    for own, other in zip(
        gradients(3 * total, states, head), gradients(3 * (expected * weights).sum(), states, head), strict=True
    ):
        torch.testing.assert_close(own, other)


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


def test_the_logits_are_never_there_at_once(monkeypatch):
    monkeypatch.setattr(softmax, "_LOGITS_AT_A_TIME", 10 * ITEMS)
    states, head = torch.randn(1000, SIZE, requires_grad=True), nn.Linear(SIZE, ITEMS)
    with LargestTensor() as seen:
        total, _ = item_cross_entropy(states, head, torch.zeros(1000, dtype=torch.long), torch.ones(1000))
        total.backward()
    assert seen.elements == 1000 * SIZE < 1000 * ITEMS


def test_the_lower_precision_stays_close(problem):
    states, head, targets, weights = (x.float() if hasattr(x, "float") else x for x in problem)
    targets = targets.long()
    states = states.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = item_cross_entropy(states, head, targets, weights)
    expected = cross_entropy(head(states), targets, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected.detach(), rtol=0.02, atol=0.02)
    for own, other in zip(
        gradients(total, states, head), gradients((expected * weights).sum(), states, head), strict=True
    ):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, other, rtol=0.05, atol=0.05)


def test_all_items_as_the_sample_is_the_whole_softmax(problem):
    states, head, targets, weights = problem
    total, losses = sampled_cross_entropy(states, head, targets, weights, torch.randperm(ITEMS))
    expected, expected_losses = item_cross_entropy(states, head, targets, weights)
    torch.testing.assert_close(losses, expected_losses)
    for own, other in zip(gradients(total, states, head), gradients(expected, states, head), strict=True):
        torch.testing.assert_close(own, other)


def test_the_sampled_normaliser_is_unbiased(problem):
    states, head, targets, weights = problem
    logits = head(states).detach()
    target = logits.gather(1, targets[:, None])[:, 0]
    estimates = []
    for seed in range(4000):
        drawn = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(seed))[:8]
        _, losses = sampled_cross_entropy(states.detach(), head, targets, weights, drawn)
        estimates.append((losses + target).exp())
    mean, error = torch.stack(estimates).mean(0), torch.stack(estimates).std(0) / len(estimates) ** 0.5
    assert ((mean - logits.exp().sum(1)).abs() < 5 * error).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(2, 50), st.integers(0, 5))
def test_any_shape(rows, items, seed):
    torch.manual_seed(seed)
    states, head = torch.randn(rows, 3, dtype=torch.float64), nn.Linear(3, items).double()
    targets = torch.randint(0, items, (rows,))
    _, losses = item_cross_entropy(states, head, targets, torch.ones(rows, dtype=torch.float64))
    torch.testing.assert_close(losses, cross_entropy(head(states), targets, reduction="none").detach())
