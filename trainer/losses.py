"""The four losses (Sections 2.2.2 to 2.2.4, 2.3.2 and 2.4), each summed over its terms.

The loop divides each sum by the number of terms in the whole batch, so that a weight λ means the same at every batch
size and any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from trainer.config import LossConfig
from trainer.data.batches import Terms
from trainer.models.darec import DARec
from trainer.models.streams import PackedStreams


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
    cf_users: Tensor
    cf_items: Tensor
    cf_negatives: Tensor
    terms: Terms


def classification_loss(logits_ri: Tensor, targets_r: Tensor) -> Tensor:
    """Sum of cross-entropies over all items: L_seq at [SEQ], L_align at [ALIGN]."""
    return cross_entropy(logits_ri, targets_r, reduction="sum")


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
    to L = L_seq + λ1 L_align + λ2 L_cl + λ3 L_cf.
    """
    states = model(step.streams)
    n_rows = len(step.targets)
    rows, aligned = states[:n_rows], states[n_rows:]
    sums = {"sequence": classification_loss(model.item_head(rows), step.targets)}
    if step.terms.align:
        logits = model.item_head(aligned[step.counted])
        sums["align"] = classification_loss(logits, step.streams.items[step.counted])
    if step.terms.contrastive:
        sums["contrastive"] = contrastive_loss(
            rows[step.contrastive_rows], aligned[step.positives], aligned[step.negatives], config.temperature
        )
    if step.terms.collaborative and model.collaborative is not None:
        terms = model.collaborative.loss_terms(step.cf_users, step.cf_items, step.cf_negatives)
        sums["collaborative"] = terms.sum()
    losses = {name: value / getattr(step.terms, name) for name, value in sums.items()}
    weights = {"sequence": 1.0, **{name: getattr(config, name) for name in ("align", "contrastive", "collaborative")}}
    losses["total"] = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
    return losses
