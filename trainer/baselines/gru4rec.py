"""GRU4Rec: a gated recurrent network over the items (Hidasi et al., ICLR 2016; Tan et al., DLRS 2016).

Differs from the authors' code: cross-entropy over all items instead of BPR or TOP1 over the batch's, item embeddings
tied to the output, sequences of users from their beginning instead of session-parallel batches.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout

from trainer.baselines.sequence import Options, SequenceModel, embed, tied_head
from trainer.baselines.transformer import Count, Share


class GRU4RecOptions(Options):
    """Options of `gru4rec`."""

    embedding: Count = Field(64, description="Size of item embeddings.")
    hidden: Count = Field(128, description="Size of the recurrent state.")
    layers: Count = Field(1, description="Recurrent layers.")
    dropout: Share = Field(0.3, description="Of the embedded items.")


class GRU4Rec(SequenceModel):
    """See the module."""

    Options = GRU4RecOptions

    def __init__(self, n_items: int, max_items: int, options: GRU4RecOptions) -> None:
        super().__init__()
        self._dropout = options.dropout
        self.head = tied_head(options.embedding, n_items, bias=False)
        nn.init.xavier_normal_(self.head.weight)
        self.gru = nn.GRU(options.embedding, options.hidden, options.layers, bias=False, batch_first=True)
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)
        self.output = nn.Linear(options.hidden, options.embedding)

    def forward(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        embedded = dropout(embed(self.head.weight, None, inputs_bt), self._dropout, self.training)
        states: Tensor = self.output(self.gru(embedded)[0])
        return states
