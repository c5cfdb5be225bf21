"""What a trained baseline is: ids of items in, a loss or ranks of all items out.

Most are a `SequenceModel`: a state after each item, scores by a tied item head.

Notation: B sequences of at most T items, M items of all of them one after the other, R states that are read, d size of
a state, I items of the catalogue.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.functional import embedding

from trainer.baselines.catalogue import Catalogue
from trainer.data.ragged import Ragged
from trainer.models.network import Network
from trainer.ranking import ItemScorer, Ranked
from trainer.softmax import item_cross_entropy

Ints = NDArray[np.int64]


class Options(BaseModel):
    """Options of a baseline (`baseline.options`); every baseline extends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Examples:
    """What a step learns from."""

    inputs: Ragged
    """[B] rows of item ids; ids from I on are the model's own."""
    places: Ints
    """[R] places among the M inputs whose state is read, in rising order."""
    targets: Ints
    """[R] the item that each of these states is to predict."""


@dataclass(frozen=True)
class Asked:
    """Histories whose next item is to be ranked, side by side."""

    inputs_bt: Tensor
    """What `question` made of them."""
    lengths_b: Tensor
    targets_b: NDArray[np.int32]
    """The items that came next."""
    seen: Ragged | None = None
    """[B] items that the ranking leaves out, if any."""


class Baseline(Network):
    """A baseline that reads item ids."""

    Options: ClassVar[type[Options]]
    extra_positions: ClassVar[int] = 0
    """Positions that `question` adds to a history."""

    @classmethod
    def build(cls, catalogue: Catalogue, max_items: int, options: Any) -> Self:
        """A fresh model; one that knows more of the items than their number overrides this.

        Args:
            catalogue: the items.
            max_items: longest sequence that it is given.
            options: its own options.

        Raises:
            BadInput: if the options ask for what the items do not have.
        """
        return cls(catalogue.n_items, max_items, options)

    def begin(self) -> None:
        """Before the first step of a fresh run."""

    def epoch_ended(self) -> None:
        """After the steps of an epoch, before it is evaluated."""

    def examples(self, histories: Ragged, rng: np.random.Generator) -> Examples:
        """Predict the next item at every place; histories have two items or more."""
        inputs, targets = histories.shifted()
        return Examples(inputs, np.arange(len(targets)), targets.astype(np.int64))

    def question(self, histories: Ragged) -> Ragged:
        """Inputs whose last state is to predict the item after each history, of one item or more."""
        return histories

    @abstractmethod
    def loss(
        self, inputs_bt: Tensor, lengths_b: Tensor, places_r: Tensor, targets_r: Tensor, weights_r: Tensor
    ) -> Tensor:
        """Weighted sum of −log p(target) of `examples`.

        Args:
            inputs_bt: [B, T] ids.
            lengths_b: of the rows; what stands beyond is padding.
            places_r: [R] places in the flattened [B · T] ids, in rising order.
            targets_r: [R] the item at each of them.
            weights_r: [R].
        """

    @abstractmethod
    def rank(self, asked: Iterable[Asked], *, likelihood: bool) -> Ranked:
        """Rank of each target among all items, in evaluation mode; on request log p(target) too. No top lists."""


class ScoredBaseline(Baseline):
    """A baseline whose scores are products of item vectors with a state after the history."""

    @abstractmethod
    def item_head(self) -> nn.Linear:
        """Scores of all items from a state; its weights [I, d] are the item vectors."""

    @abstractmethod
    def last_states(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """[B, d] states that predict the next item."""

    @torch.no_grad()
    def rank(self, asked: Iterable[Asked], *, likelihood: bool) -> Ranked:
        states, targets, seen = [], [], []
        for part in asked:
            states.append(self.last_states(part.inputs_bt, part.lengths_b))
            targets.append(part.targets_b)
            seen += [part.seen] if part.seen is not None else []
        scorer = ItemScorer.on(self.item_head(), str(states[0].device), seen=Ragged.join(seen) if seen else None)
        return scorer.rank(torch.cat(states), np.concatenate(targets), 0, likelihood=likelihood)


class SequenceModel(ScoredBaseline):
    """A baseline with a state after each item."""

    head: nn.Linear
    """The item head; a model whose item vectors are computed overrides `item_head` (`computed_head`)."""

    def item_head(self) -> nn.Linear:
        return self.head

    @abstractmethod
    def forward(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """States [B, T, d] of ids [B, T]; what stands beyond a row's length is padding."""

    def last_states(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        rows = torch.arange(len(lengths_b), device=lengths_b.device)
        return torch.as_tensor(self(inputs_bt, lengths_b)[rows, lengths_b - 1])

    def loss(
        self, inputs_bt: Tensor, lengths_b: Tensor, places_r: Tensor, targets_r: Tensor, weights_r: Tensor
    ) -> Tensor:
        states_rd = self(inputs_bt, lengths_b).flatten(0, 1).index_select(0, places_r)
        return item_cross_entropy(states_rd, self.item_head(), targets_r, weights_r)[0]


def embed(table: Tensor, own: Tensor | None, ids: Tensor) -> Tensor:
    """Rows of the item table, and for ids beyond it of the model's own tokens."""
    return embedding(ids, table if own is None else torch.cat([table, own]))


def padded(rows: Ragged) -> tuple[Ints, Ints]:
    """Rows side by side, filled up with 0 at their ends: ids [B, T] and lengths [B]."""
    lengths = rows.lengths
    matrix = np.zeros((len(lengths), int(lengths.max(initial=1))), np.int64)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = rows.values
    return matrix, lengths


def tied_head(dimension: int, n_items: int, *, bias: bool) -> nn.Linear:
    """The item head; without a bias it stays zero and is not trained."""
    head = nn.Linear(dimension, n_items)
    nn.init.zeros_(head.bias)
    head.bias.requires_grad_(bias)
    return head


def one_cut(histories: Ragged, rng: np.random.Generator) -> Examples:
    """One item of each history, drawn anew, after those before it: `examples` for who reads a whole history at once."""
    cuts = rng.integers(1, histories.lengths)
    rows = histories.row_of_value
    before = np.arange(len(rows)) - histories.offsets[rows] < cuts[rows]
    inputs = Ragged.from_lengths(histories.values[before], cuts)
    targets = histories.values[histories.offsets[:-1] + cuts].astype(np.int64)
    return Examples(inputs, inputs.offsets[1:] - 1, targets)
