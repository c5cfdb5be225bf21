"""The literal reference of the tests on a benchmark's batches."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.config import LossConfig
from trainer.data.batches import Batch
from trainer.data.ragged import Ragged

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "trainer"))
from reference import ReferenceDARec

__all__ = ["ReferenceDARec", "literal_loss"]


class _Sentences:
    """Items' tokens as the lists that the reference wants."""

    def __init__(self, tokens: Ragged) -> None:
        self.tokens = tokens

    def __getitem__(self, item: int) -> list[int]:
        return [int(token) for token in self.tokens[item]]


def literal_loss(
    reference: ReferenceDARec, tokens: Ragged, prompt: list[int], batch: Batch, users: int, weights: LossConfig
) -> Tensor:
    """L over the first users of a batch and their share of its alignment items.

    Args:
        reference: the literal model.
        tokens: of every item.
        prompt: of an alignment stream.
        batch: the batch.
        users: how many of its users; the time of more grows in proportion.
        weights: of the losses.
    """
    sentences = _Sentences(tokens)
    parts = np.split(batch.inputs, np.cumsum(batch.lengths)[:-1])[:users]
    states: list[Tensor] = []
    for user, part in zip(batch.users, parts, strict=False):
        states += reference.sequence_states(sentences, part.tolist(), int(user))
    items = batch.align_items[: max(6, len(batch.align_items) * users // len(batch.users))]
    aligned = [reference.align_state(sentences, prompt, int(item)) for item in items]
    pairs = zip(batch.cf_users, batch.cf_items, batch.cf_negatives, strict=True)
    own = [pair for pair in pairs if pair[0] in batch.users[:users]]
    terms = {
        "sequence": [reference.cross_entropy(s, int(t)) for s, t in zip(states, batch.targets, strict=False)],
        "align": [reference.cross_entropy(s, int(item)) for s, item in zip(aligned, items, strict=True)],
        # Whose state is whose positive does not matter for the time.
        "contrastive": [reference.info_nce(s, aligned[0], aligned[1:6], weights.temperature) for s in states[:users]],
        "collaborative": [reference.collaborative.term(int(u), int(i), list(map(int, js))) for u, i, js in own],
    }
    shares = {"sequence": 1.0, **{name: getattr(weights, name) for name in list(terms)[1:]}}
    return sum(shares[name] * torch.stack(values).mean() for name, values in terms.items())
