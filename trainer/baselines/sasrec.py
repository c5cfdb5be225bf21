"""SASRec: self-attention under a causal mask (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018).

Differs from the authors' code: cross-entropy over all items instead of one sampled negative (which is what makes it a
strong baseline), post-norm layers with GELU and biases as in RecBole, positions counted from the oldest item.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainer.baselines.sequence import SequenceModel, embed, tied_head
from trainer.baselines.transformer import Encoder, TransformerOptions, causal


class SASRecOptions(TransformerOptions):
    """Options of `sasrec`."""


class SASRec(SequenceModel):
    """See the module."""

    Options = SASRecOptions

    def __init__(self, n_items: int, max_items: int, options: SASRecOptions) -> None:
        super().__init__()
        self.head = tied_head(options.hidden, n_items, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.encoder = Encoder(options, max_items)

    def forward(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        # Padding stands at the ends, where the causal mask hides it from all that is read.
        embedded = embed(self.head.weight, None, inputs_bt)
        states: Tensor = self.encoder(embedded, causal(inputs_bt.shape[1], inputs_bt.device))
        return states
