"""FDSA: self-attention over items and over their features, side by side (Zhang et al., IJCAI 2019).

    f_t = Σ_a α_ta A_ta    vanilla attention over the attributes a of the item at t
    state = W [items attended; features attended] + b    fully connected layer over both blocks

A_ta is the mean of the attribute's feature vectors: a brand is one feature, a title as many as it has words.
Differs from the authors' code: cross-entropy over all items instead of one sampled negative; features are learnt
instead of word2vec for texts; as in RecBole the attention has one hidden ReLU layer, the state is followed by a layer
norm, and the layers are post-norm with GELU; each of the two blocks has positions of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding_bag, relu

from trainer.baselines.catalogue import Catalogue
from trainer.baselines.sequence import SequenceModel, embed, tied_head
from trainer.baselines.transformer import Count, Encoder, TransformerOptions, causal
from trainer.errors import BadInput

_NONE = 0
"""Stands where an attribute has fewer features than its longest."""


class FDSAOptions(TransformerOptions):
    """Options of `fdsa`."""

    values: tuple[str, ...] | None = Field(
        None, description="Attributes whose whole text is one feature; `brand` if the dataset has it, when absent."
    )
    words: tuple[str, ...] | None = Field(
        None, description="Attributes of which each word is one; `title` and `categories`, when absent."
    )
    fewest: Count = Field(2, description="Items that must have a feature for it to count.")
    longest: Count = Field(20, description="Features of one attribute of one item at most, the first of its text.")


class FDSA(SequenceModel):
    """See the module.

    Args:
        features_iaw: [I, attributes, W] feature of each item, attribute and place; 0 for none.
        max_items: longest sequence.
        options: its own.
    """

    Options = FDSAOptions

    def __init__(self, features_iaw: Tensor, max_items: int, options: FDSAOptions) -> None:
        super().__init__()
        size = options.hidden
        self._dropout = options.dropout
        self.head = tied_head(size, len(features_iaw), bias=False)
        self.features = nn.Parameter(torch.empty(int(features_iaw.max()) + 1, size).normal_(std=0.02))
        nn.init.normal_(self.head.weight, std=0.02)
        self.attention_inner, self.attention_outer = nn.Linear(size, size), nn.Linear(size, 1)
        self.items, self.item_features = Encoder(options, max_items), Encoder(options, max_items)
        self.both, self.norm = nn.Linear(2 * size, size), nn.LayerNorm(size)
        for linear in (self.attention_inner, self.attention_outer, self.both):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.features_iaw: Tensor
        self.register_buffer("features_iaw", features_iaw, persistent=False)

    @classmethod
    def build(cls, catalogue: Catalogue, max_items: int, options: FDSAOptions) -> Self:
        return cls(item_features(catalogue.attributes, options), max_items, options)

    def forward(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        allowed = causal(inputs_bt.shape[1], inputs_bt.device)
        items = self.items(embed(self.head.weight, None, inputs_bt), allowed)
        features = self.item_features(self._attended(inputs_bt), allowed)
        states = self.norm(self.both(torch.cat([items, features], -1)))
        return dropout(states, self._dropout, self.training)

    def _attended(self, inputs_bt: Tensor) -> Tensor:
        """[B, T, d] each item's attributes, weighed by attention."""
        ids_btaw = self.features_iaw[inputs_bt]
        means = embedding_bag(ids_btaw.flatten(0, 2), self.features, mode="mean", padding_idx=_NONE)
        attributes_btad = means.unflatten(0, ids_btaw.shape[:3])
        weights_bta1 = self.attention_outer(relu(self.attention_inner(attributes_btad))).softmax(2)
        return (weights_bta1 * attributes_btad).sum(2)


def item_features(attributes: Mapping[str, Sequence[str]], options: FDSAOptions) -> Tensor:
    """Features of all items as numbers from 1, those of each attribute apart from the others'; 0 for none.

    Args:
        attributes: texts of each attribute, [I], by its name.
        options: which of them, and how.

    Returns:
        [I, attributes, W] int64.

    Raises:
        BadInput: if an attribute that is named is not there, or no item has a feature.
    """
    known, first = [], 1
    for rows in _rows_of_attributes(attributes, options):
        counts = Counter(feature for row in rows for feature in set(row))
        kept = sorted(feature for feature, count in counts.items() if count >= options.fewest)
        number = {feature: first + place for place, feature in enumerate(kept)}
        known.append([[number[feature] for feature in row if feature in number][: options.longest] for row in rows])
        first += len(kept)
    if first == 1:
        raise BadInput(
            f"baseline.options.fewest: no feature is had by {options.fewest} items; lower it, or name other attributes"
        )
    return _side_by_side(known)


def _rows_of_attributes(attributes: Mapping[str, Sequence[str]], options: FDSAOptions) -> Iterator[list[list[str]]]:
    """Features of all items as texts, one attribute after the other."""
    wanted = [("values", options.values, ("brand",)), ("words", options.words, ("title", "categories"))]
    for field, named, usual in wanted:
        for name in usual if named is None else named:
            if name in attributes:
                yield [_features(text, field) for text in attributes[name]]
            elif named is not None:
                has = ", ".join(attributes)
                raise BadInput(f"baseline.options.{field}: the dataset has no attribute {name!r}; it has {has}")


def _features(text: str, field: str) -> list[str]:
    text = text.lower().strip()
    return re.findall(r"\w+", text) if field == "words" else [text] * bool(text)


def _side_by_side(known: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Rows of each attribute, filled up with 0: [items, attributes, longest row]."""
    longest = max(len(row) for rows in known for row in rows)
    filled = [[[*row, *[_NONE] * (longest - len(row))] for row in rows] for rows in known]
    return torch.tensor(filled, dtype=torch.int64).transpose(0, 1).contiguous()
