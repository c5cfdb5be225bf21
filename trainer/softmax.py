"""Cross-entropy of a linear head over very many items, without holding [rows × items] logits.

Legend: R rows, I items, d size of a state, N drawn items. logits = states W_itemᵀ + b_item (+ prior).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_LOGITS_AT_A_TIME = 2**25  # 128 MiB in float32


@dataclass(frozen=True)
class RowLogits:
    """Logits that the first rows have beside those of the head."""

    rows: int
    """How many."""
    of: Callable[[int, int], Tensor]
    """Those of rows start … stop - 1, [stop - start, I] float32, a function of the parameters."""
    parameters: tuple[Tensor, ...]
    """What they are trained by."""


def item_cross_entropy(
    states_rd: Tensor, head: nn.Linear, targets_r: Tensor, weights_r: Tensor, added: RowLogits | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum of cross-entropies over all items, by blocks of rows.

    The gradients are computed in the forward pass, block by block, as the logits are there anyway: at no time is there
    more than one block of them, and the backward pass multiplies by a scalar only. Under autocast the matrix products
    take the lower precision, the softmax stays in float32.

    Args:
        states_rd: [R, d].
        head: W_item [I, d] and b_item [I].
        targets_r: [R] item of each row.
        weights_r: [R] weight of each row in the sum.
        added: logits that the first rows have beside; none when absent.

    Returns:
        The weighted sum, and [R] cross-entropies without gradient.
    """
    parameters = () if added is None else added.parameters
    total, losses = _ItemCrossEntropy.apply(states_rd, head.weight, head.bias, targets_r, weights_r, added, *parameters)
    return total, losses


def sampled_cross_entropy(
    states_rd: Tensor, head: nn.Linear, targets_r: Tensor, weights_r: Tensor, sampled_n: Tensor
) -> tuple[Tensor, Tensor]:
    """`item_cross_entropy` whose normaliser is estimated from items drawn uniformly without repetition.

    Z = exp(s_target) + (I − 1)/n Σ_j exp(s_j) over the n drawn items that are not the row's target: unbiased for the
    sum over all items (importance sampling: Bengio and Senécal, IEEE Transactions on Neural Networks 2008).

    Args:
        states_rd: [R, d].
        head: W_item [I, d] and b_item [I].
        targets_r: [R] item of each row.
        weights_r: [R] weight of each row in the sum.
        sampled_n: [N] drawn items, the same for all rows.

    Returns:
        The weighted sum, and [R] cross-entropies without gradient.
    """
    # Gathered once, since each gathering has a gradient of the head's whole size.
    items = torch.cat([sampled_n, targets_r])
    sizes = [len(sampled_n), len(targets_r)]
    rival_weights_nd, target_weights_rd = head.weight.index_select(0, items).split(sizes)
    rival_biases_n, target_biases_r = head.bias.index_select(0, items).split(sizes)
    rivals_rn = linear(states_rd, rival_weights_nd, rival_biases_n).float()
    target_r = (states_rd * target_weights_rd).sum(-1).float() + target_biases_r
    is_target_rn = sampled_n == targets_r[:, None]
    counts_r = (len(sampled_n) - is_target_rn.sum(1)).clamp(min=1)
    rivals_rn = rivals_rn.masked_fill(is_target_rn, -math.inf) + torch.log((head.out_features - 1) / counts_r)[:, None]
    losses_r = torch.cat([target_r[:, None], rivals_rn], dim=1).logsumexp(1) - target_r
    return (losses_r * weights_r).sum(), losses_r.detach()


class _ItemCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_rd: Tensor,
        weight_id: Tensor,
        bias_i: Tensor,
        targets_r: Tensor,
        weights_r: Tensor,
        added: RowLogits | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        device = states_rd.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_id.dtype
        wanted = any(ctx.needs_input_grad[:3])
        trained = (states_rd, weight_id, bias_i, *parameters)
        gradients = [torch.zeros_like(tensor) for tensor in trained] if wanted else []
        losses_r = torch.empty(len(states_rd), dtype=bias_i.dtype, device=states_rd.device)
        step = max(_LOGITS_AT_A_TIME // len(bias_i), 1)
        with torch.autocast(device, enabled=False):
            weight_low = weight_id.to(low)
            for start in range(0, len(states_rd), step):
                rows = slice(start, start + step)
                states, targets = states_rd[rows].to(low), targets_r[rows, None]
                logits = linear(states, weight_low).to(bias_i.dtype).add_(bias_i)
                extra = _added(logits, added, start, wanted)
                normaliser = logits.logsumexp(1, keepdim=True)
                losses_r[rows] = (normaliser - logits.gather(1, targets)).squeeze(1)
                if wanted:
                    # d loss / d logits = softmax − one-hot of the target
                    slopes = logits.sub_(normaliser).exp_()
                    slopes.scatter_add_(1, targets, torch.full_like(normaliser, -1)).mul_(weights_r[rows, None])
                    gradients[2] += slopes.sum(0)
                    if extra is not None:
                        found = torch.autograd.grad(extra, parameters, slopes[: len(extra)], allow_unused=True)
                        for gradient, part in zip(gradients[3:], found, strict=True):
                            gradient += 0 if part is None else part
                    slopes = slopes.to(low)
                    gradients[0][rows] = slopes @ weight_low
                    gradients[1] += slopes.T @ states
        ctx.gradients = gradients
        ctx.mark_non_differentiable(losses_r)
        return (losses_r * weights_r).sum(), losses_r

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # in place, hence once
        first, more = gradients[:3], gradients[3:]
        return (
            *(gradient.mul_(grad_total) for gradient in first),
            *(None, None, None),
            *(gradient.mul_(grad_total) for gradient in more),
        )


def _added(logits: Tensor, added: RowLogits | None, start: int, wanted: bool) -> Tensor | None:
    """Add to a block of logits that begins with row `start` what its rows have beside; returns that with its graph."""
    if added is None or start >= added.rows:
        return None
    with torch.set_grad_enabled(wanted):
        extra = added.of(start, min(start + len(logits), added.rows))
    logits[: len(extra)] += extra.detach()
    return extra
