from __future__ import annotations

import math

import pytest
import torch
from tiny_runs import tiny_run

from trainer.training.divergence import LOSSES, Diverged, LossWatch, Moment
from trainer.training.loop import Training
from trainer.training.optimizer import apply_step
from trainer.training.run import run
from trainer.training.warm import Warm

HEALTHY = torch.tensor([4.0, 4.0, 1.5, 0.7, 4.5])
ONE = torch.tensor(1.0)


def moment(step: int) -> Moment:
    return Moment(step, epoch=1, learning_rate=1e-3)


def with_loss(name: str, value: float) -> torch.Tensor:
    losses = HEALTHY.clone()
    losses[LOSSES.index(name)] = value
    return losses


@pytest.mark.parametrize(
    ("losses", "norm", "said"),
    [
        (with_loss("align", math.nan), ONE, "the align loss is nan in step 2 (epoch 1, learning rate 0.001)"),
        (with_loss("total", math.inf), ONE, "the total loss is inf"),
        (HEALTHY, torch.tensor(math.nan), "gradient's norm is nan"),
        (with_loss("sequence", 10.1 * math.log(80)), ONE, "the sequence loss is 44.26, over 10 times 4.382"),
        (with_loss("collaborative", 7.1), ONE, "the collaborative loss is 7.1"),
    ],
    ids=["nan", "inf", "gradient", "exploded", "exploded-cf"],
)
def test_a_step_that_diverges_is_named(losses, norm, said):
    watch = LossWatch(80, {}, late=False)
    watch.look(moment(1), HEALTHY, ONE)
    with pytest.raises(Diverged) as error:
        watch.look(moment(2), losses, norm)
    assert said in str(error.value)
    assert "lower optimization.learning_rate" in str(error.value)


def test_a_high_start_and_a_contrastive_loss_of_a_low_temperature_are_healthy():
    first = {}
    watch = LossWatch(80, first, late=False)
    watch.look(moment(1), with_loss("sequence", 200.0), ONE)
    watch.look(moment(2), with_loss("sequence", 300.0), torch.tensor(1e6))
    watch.look(moment(3), with_loss("contrastive", 90.0), ONE)
    assert first["sequence"] == 200.0
    # The level of a resumed run is that of its own first step.
    LossWatch(80, first, late=False).look(moment(4), with_loss("sequence", 300.0), ONE)


def test_judged_late_the_step_before_is_named():
    watch = LossWatch(80, {}, late=True)
    assert watch.look(moment(1), HEALTHY, ONE) == 0
    assert watch.look(moment(2), with_loss("sequence", math.nan), ONE) == 1
    with pytest.raises(Diverged, match="in step 2"):
        watch.look(moment(3), HEALTHY, ONE)
    watch.look(moment(4), HEALTHY, torch.tensor(math.inf))
    with pytest.raises(Diverged, match="in step 4"):
        watch.finish()
    watch.finish()


def test_a_flagged_step_changes_neither_weights_nor_moments():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    apply_step(optimizer, skip=torch.tensor(0.0))
    before = [tensor.clone() for tensor in (weight, *optimizer.state[weight].values())]
    weight.grad = torch.full((3,), math.nan)
    apply_step(optimizer, skip=torch.tensor(1.0))
    assert all(map(torch.equal, before, (weight, *optimizer.state[weight].values())))


def test_a_run_that_diverges_stops_before_the_bad_step_is_applied(tmp_path):
    config = tiny_run(tmp_path)
    training = Training(config, Warm().materials(config), tmp_path / "run", "cpu")
    weight = training.model.item_head.weight
    seen = []

    def spoil(gradient):
        seen.append(weight.detach().clone())
        return gradient * math.nan if len(seen) == 3 else gradient

    weight.register_hook(spoil)
    with pytest.raises(Diverged, match=r"norm is nan.*in step 3 \(epoch 1"):
        training.run()
    assert torch.equal(weight, seen[-1])
    assert not torch.equal(seen[0], seen[-1])


def test_a_learning_rate_beyond_reason_is_a_status_with_a_reason(tmp_path):
    optimization = {"learning_rate": 1e3, "max_grad_norm": 1e12, "warmup_fraction": 0.0}
    result = run(tiny_run(tmp_path, optimization=optimization), tmp_path / "run")
    assert result.status == "diverged"
    assert "over 10 times" in result.reason
    assert "epoch 1" in result.reason
    assert result.objective is None
