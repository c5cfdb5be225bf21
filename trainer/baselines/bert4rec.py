"""BERT4Rec: items masked at random are predicted from both sides (Sun et al., CIKM 2019).

The next item is asked for by a mask at the end. As that is not what random masks train, in a share of the sequences
only the last item is masked. Petrov and Macdonald ("A Systematic Review and Replicability Study of BERT4Rec", RecSys
2022) found that the published figures need far more training than the code's default: give it several times the epochs
of SASRec, with patience.
Differs from the authors' code: sequences are not cut into overlapping windows, masks are drawn anew in every epoch
instead of ten times beforehand, and the head's transformation is followed by a layer norm as in BERT.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu

from trainer.baselines.sequence import Examples, SequenceModel, embed, tied_head
from trainer.baselines.transformer import Encoder, Share, TransformerOptions, within
from trainer.data.ragged import Ragged


class BERT4RecOptions(TransformerOptions):
    """Options of `bert4rec`."""

    mask_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="ρ, share of the items masked.")
    last_only: Share = Field(0.5, description="Share of the sequences in which the last item alone is masked.")


class BERT4Rec(SequenceModel):
    """See the module."""

    Options = BERT4RecOptions
    extra_positions = 1

    def __init__(self, n_items: int, max_items: int, options: BERT4RecOptions) -> None:
        super().__init__()
        self._options = options
        self._mask = n_items
        self.head = tied_head(options.hidden, n_items, bias=True)
        nn.init.normal_(self.head.weight, std=0.02)
        self.mask = nn.Parameter(torch.empty(1, options.hidden).normal_(std=0.02))
        self.encoder = Encoder(options, max_items + self.extra_positions)
        self.transform, self.norm = nn.Linear(options.hidden, options.hidden), nn.LayerNorm(options.hidden)

    def examples(self, histories: Ragged, rng: np.random.Generator) -> Examples:
        """Masked items, at least one a sequence."""
        lengths, last = histories.lengths, histories.offsets[1:] - 1
        masked = rng.random(len(histories.values)) < self._options.mask_fraction
        masked &= np.repeat(rng.random(len(lengths)) >= self._options.last_only, lengths)
        none = np.add.reduceat(masked, histories.offsets[:-1]) == 0
        masked[last[none]] = True
        values = histories.values.astype(np.int64)
        inputs = Ragged.from_lengths(np.where(masked, self._mask, values), lengths)
        return Examples(inputs, np.flatnonzero(masked), values[masked])

    def question(self, histories: Ragged) -> Ragged:
        """Each history with a mask behind it."""
        return Ragged.from_lengths(
            np.insert(histories.values.astype(np.int64), histories.offsets[1:], self._mask), histories.lengths + 1
        )

    def forward(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        embedded = embed(self.head.weight, self.mask, inputs_bt)
        h_btd = self.encoder(embedded, within(lengths_b, inputs_bt.shape[1]))
        return torch.as_tensor(self.norm(gelu(self.transform(h_btd))))
