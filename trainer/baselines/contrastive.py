"""UniSRec's pre-training on several datasets: which item comes next, and which sequences are the same.

    L = L_item + λ L_sequence    (Section 2.2 of its paper, all over the items and sequences of a batch)

L_item pulls the state of a sequence to its next item, L_sequence to the state of the sequence itself with items or
words left out; everything else in the batch, from any dataset, pushes. Sequences with the same next item do not push.
Differs from the authors' code: a sequence has one next item an epoch, drawn anew, in place of all of them; those of
the same next item are left out of the sums, where there each adds 1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from trainer.baselines.sequence import Ints, Options, one_cut, padded
from trainer.baselines.text_adaptor import TextSequences
from trainer.baselines.transformer import Count, Share
from trainer.data.ragged import Ragged
from trainer.storage import without_credentials

logger = logging.getLogger(__name__)


class Pretraining(Options):
    """Options of `pretraining`."""

    datasets: tuple[Annotated[str, AfterValidator(without_credentials)], ...] = Field(
        min_length=1, description="Dataset folders or URLs; their training parts are read."
    )
    epochs: Count = Field(20, description="Passes over the users of all datasets.")
    batch_size: Annotated[int, Field(ge=2)] = Field(512, description="Sequences of a step, of all datasets.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Adam's.")
    sequence_weight: Annotated[float, Field(ge=0)] = Field(1e-3, description="λ.")
    dropped: Share = Field(0.2, description="Share of items, or of words, left out for L_sequence.")
    seed: int = Field(0, description="Of initial weights and batches.")


@dataclass(frozen=True)
class Texts:
    """Items of all datasets, one after the other, and the sequences of their users.

    Args:
        vectors_iw: [I, w] their texts.
        altered_iw: [I, w] their texts with words left out.
        histories: items of each user, two or more.
    """

    vectors_iw: Tensor
    altered_iw: Tensor
    histories: Ragged

    @classmethod
    def join(cls, parts: Sequence[Texts]) -> Texts:
        """All datasets as one."""
        firsts = np.cumsum([0, *(len(part.vectors_iw) for part in parts)])
        rows = [
            Ragged(part.histories.values + np.int32(first), part.histories.offsets)
            for part, first in zip(parts, firsts[:-1], strict=True)
        ]
        vectors, altered = ([getattr(part, name) for part in parts] for name in ("vectors_iw", "altered_iw"))
        return cls(torch.cat(vectors), torch.cat(altered), Ragged.join(rows))


def pretrain(model: TextSequences, texts: Texts, options: Pretraining, temperature: float, device: str) -> list[float]:
    """Train adaptor and Transformer.

    Args:
        model: fresh, on the device.
        texts: of all datasets.
        options: how.
        temperature: τ.
        device: where.

    Returns:
        Mean loss of each epoch.
    """
    table = torch.cat([texts.vectors_iw, texts.altered_iw]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), options.learning_rate)
    rng, losses = np.random.default_rng(options.seed), []
    model.train()
    for epoch in range(1, options.epochs + 1):
        found = []
        for batch in _batches(texts.histories, len(texts.vectors_iw), options, rng):
            loss = _loss(model, table, batch, options.sequence_weight, temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        losses.append(float(torch.stack(found).mean()))
        logger.info("pre-training: epoch %d of %d, loss %.4f", epoch, options.epochs, losses[-1])
    return losses


@dataclass(frozen=True)
class _Batch:
    """Sequences, the same ones altered, and the next item of each; altered texts have numbers from I on."""

    inputs: Ragged
    altered: Ragged
    targets: Ints


def _batches(histories: Ragged, n_items: int, options: Pretraining, rng: np.random.Generator) -> Iterator[_Batch]:
    """An epoch: every user once, cut before an item at random."""
    order = rng.permutation(len(histories))
    for users in np.array_split(order, math.ceil(len(order) / options.batch_size)):
        drawn = one_cut(histories.take(users), rng)
        yield _Batch(drawn.inputs, _altered(drawn.inputs, n_items, options.dropped, rng), drawn.targets)


def _altered(inputs: Ragged, n_items: int, share: float, rng: np.random.Generator) -> Ragged:
    """Half of the sequences without some of their items, the others of texts without some of their words."""
    row, by_words = inputs.row_of_value, rng.random(len(inputs)) < 0.5
    kept = by_words[row] | (rng.random(len(row)) >= share)
    kept[inputs.offsets[1:] - 1] |= np.add.reduceat(kept, inputs.offsets[:-1]) == 0
    values = inputs.values + n_items * by_words[row]
    return Ragged.from_lengths(values[kept], np.add.reduceat(kept, inputs.offsets[:-1], dtype=np.int64))


def _loss(model: TextSequences, table: Tensor, batch: _Batch, weight: float, temperature: float) -> Tensor:
    targets = torch.from_numpy(batch.targets).to(table.device)
    states = _last_states(model, table, batch.inputs)
    found = _contrast(states, normalize(model.adaptor(table[targets]), dim=-1), targets, temperature)
    if weight:
        altered = _last_states(model, table, batch.altered)
        found = found + weight * _contrast(states, altered, targets, temperature)
    return found


def _last_states(model: TextSequences, table: Tensor, rows: Ragged) -> Tensor:
    matrix, lengths = (torch.from_numpy(array).to(table.device) for array in padded(rows))
    states_btd = model.states(model.adaptor(table[matrix]))
    return states_btd[torch.arange(len(lengths), device=table.device), lengths - 1]


def _contrast(states_bd: Tensor, others_bd: Tensor, targets_b: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each state with its own of the others."""
    own = torch.arange(len(targets_b), device=targets_b.device)
    rivals = (targets_b[:, None] != targets_b) | (own[:, None] == own)
    return cross_entropy((states_bd @ others_bd.T / temperature).masked_fill(~rivals, -math.inf), own)
