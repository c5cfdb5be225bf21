"""The four losses (Sections 2.2.2 to 2.2.4, 2.3.2 and 2.4), each summed over its terms.

The loop divides each sum by the number of terms in the whole batch, so that a weight λ means the same at every batch
size and any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, dropout

from trainer.config import LossConfig
from trainer.data.batches import Terms
from trainer.models.darec import DARec
from trainer.models.prior import PriorInput
from trainer.models.streams import PackedStreams
from trainer.softmax import RowLogits, item_cross_entropy, sampled_cross_entropy


@dataclass(frozen=True)
class StepInput:
    """A `Batch` as tensors: the model's streams and what the losses need. Shapes as in `Batch`."""

    streams: PackedStreams
    targets: Tensor
    contrastive_rows: Tensor
    positives: Tensor
    """[C] index into the alignment streams of each contrastive row's target."""
    negatives: Tensor
    """[C, n_cl] indices into the alignment streams."""
    counted: Tensor
    """[A'] indices of the alignment streams that L_align counts."""
    sampled: Tensor
    """[N] items drawn as rivals of a sampled softmax; empty for the softmax over all items."""
    cf_users: Tensor
    cf_items: Tensor
    cf_negatives: Tensor
    terms: Terms
    prior: PriorInput | None = None
    """What is counted for the sequence rows, for a model with a prior."""
    seed: int = 0
    """Of dropout."""


def contrastive_loss(states_cd: Tensor, positives_cd: Tensor, negatives_ckd: Tensor, temperature: float) -> Tensor:
    """Sum of InfoNCE terms with cosine similarity (Section 2.2.4).

    Args:
        states_cd: [SEQ] states [C, d].
        positives_cd: [ALIGN] states of the next items [C, d].
        negatives_ckd: [ALIGN] states of hard negatives [C, n_cl, d].
        temperature: τ.
    """
    candidates = torch.cat([positives_cd[:, None], negatives_ckd], dim=1)
    similarity_ck = cosine_similarity(states_cd[:, None], candidates, dim=-1) / temperature
    return -similarity_ck.log_softmax(dim=-1)[:, 0].sum()


def darec_losses(model: DARec, step: StepInput, config: LossConfig) -> dict[str, Tensor]:
    """Loss by name for one worker's share of a batch: `sequence`, `align`, `contrastive`, `collaborative`, `total`.

    Losses without a term or with weight 0 are left out. Over all workers they add up to the batch's means, and `total`
    to L = L_seq + λ1 L_align + λ2 L_cl + λ3 L_cf. Each is a scalar; `total` is the one to differentiate, since
    `sequence` and `align` carry no gradient of their own.
    """
    states = _dropped(model(step.streams), model.head_dropout if model.training else 0.0, step.seed)
    n_rows = len(step.targets)
    rows, aligned = states[:n_rows], states[n_rows:]
    total, losses = _classification(model, rows, aligned[step.counted], step, config)
    if step.terms.contrastive:
        contrast = contrastive_loss(
            rows[step.contrastive_rows], aligned[step.positives], aligned[step.negatives], config.temperature
        )
        losses["contrastive"] = contrast / step.terms.contrastive
        total = total + config.contrastive * losses["contrastive"]
    if step.terms.collaborative and model.collaborative is not None:
        pairs = model.collaborative.loss_terms(step.cf_users, step.cf_items, step.cf_negatives)
        losses["collaborative"] = pairs.sum() / step.terms.collaborative
        total = total + config.collaborative * losses["collaborative"]
    return {**losses, "total": total}


def _dropped(states: Tensor, share: float, seed: int) -> Tensor:
    """The states with a share of their numbers dropped, which one follows from the seed alone."""
    if share == 0:
        return states
    with torch.random.fork_rng(devices=[states.device] if states.is_cuda else []):
        torch.manual_seed(seed)
        return dropout(states, share)


def _classification(
    model: DARec, rows: Tensor, counted: Tensor, step: StepInput, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_seq at [SEQ] and L_align at [ALIGN], both over all items by the same W_item: one pass over the items for both.

    A prior knows histories, so it is added at [SEQ] alone.

    Returns:
        L_seq + λ1 L_align, and each alone without gradient.
    """
    shares = {"sequence": (len(rows), 1 / step.terms.sequence)}
    if step.terms.align:
        shares["align"] = (len(counted), 1 / step.terms.align)
    scales = {"sequence": 1.0, "align": config.align}
    dtype = model.item_head.bias.dtype
    weights = torch.cat(
        [rows.new_full((count,), scales[name] * share, dtype=dtype) for name, (count, share) in shares.items()]
    )
    states, targets = torch.cat([rows, counted]), torch.cat([step.targets, step.streams.items[step.counted]])
    head = model.scoring_head()
    if len(step.sampled):
        total, terms = sampled_cross_entropy(states, head, targets, weights, step.sampled)
    else:
        added = None
        if model.prior is not None and step.prior is not None:
            logits = partial(model.prior, step.prior)
            added = RowLogits(len(rows), logits, tuple(model.prior.parameters()))
        total, terms = item_cross_entropy(states, head, targets, weights, added)
    parts = terms.split([count for count, _ in shares.values()])
    return total, {name: part.sum() * shares[name][1] for name, part in zip(shares, parts, strict=True)}
