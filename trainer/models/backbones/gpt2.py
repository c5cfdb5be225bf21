"""The GPT-2 family: pre-norm, learned positions, one transposed matrix for Q, K and V."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from trainer.models.backbones.base import Backbone, BackboneLayer
from trainer.models.backbones.projections import Projections


class GPT2Backbone(Backbone):
    """A GPT-2 decoder.

    Args:
        model: a loaded `GPT2Model`; it is taken apart and frozen.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model, map(_layer, model.h))
        self.embed_tokens: nn.Module = model.wte
        self.embed_positions: nn.Module = model.wpe
        self.final_norm: nn.Module = model.ln_f

    def word_embeddings(self, token_ids_t: Tensor) -> Tensor:
        return self.embed_tokens(token_ids_t)

    def enter(self, embeddings_te: Tensor, positions_t: Tensor) -> Tensor:
        return embeddings_te + self.embed_positions(positions_t)

    def finish(self, h_rd: Tensor) -> Tensor:
        return self.final_norm(h_rd)


def _layer(block: Any) -> BackboneLayer:
    attention, mlp = block.attn, block.mlp
    # GPT-2 may scale scores by the layer's number too, or not at all; what differs from 1/√D goes into the queries.
    scale = attention.scaling * math.sqrt(attention.head_dim)
    query, key, value = attention.c_attn.weight.T.chunk(3)
    query_bias, key_bias, value_bias = attention.c_attn.bias.chunk(3)
    heads = attention.num_heads
    return BackboneLayer(
        pre_norm=True,
        qkv=Projections([scale * query, key, value], [scale * query_bias, key_bias, value_bias], heads, heads),
        attention_norm=block.ln_1,
        attend_out=attention.c_proj,
        ffn_norm=block.ln_2,
        ffn=nn.Sequential(mlp.c_fc, mlp.act, mlp.c_proj),
    )
