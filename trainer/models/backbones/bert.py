"""The BERT family (MiniLM and others): post-norm encoders, whose frozen weights have never seen a causal mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trainer.errors import BadInput
from trainer.models.backbones.base import Backbone, BackboneLayer
from trainer.models.backbones.projections import Projections


class BertBackbone(Backbone):
    """A BERT encoder; every token has token type 0.

    Args:
        model: a loaded `BertModel`; it is taken apart and frozen.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model, map(_layer, model.encoder.layer))
        embeddings = model.embeddings
        self.embed_tokens: nn.Module = embeddings.word_embeddings
        # Token type and position are added to every word; their sum is one table.
        self.embed_positions = nn.Embedding.from_pretrained(
            embeddings.position_embeddings.weight.detach() + embeddings.token_type_embeddings.weight[0].detach()
        )
        self.embedding_norm: nn.Module = embeddings.LayerNorm

    @classmethod
    def positions(cls, config: Any) -> int:
        kind = getattr(config, "position_embedding_type", "absolute")
        if kind != "absolute":
            raise BadInput(
                f"model.backbone.name: its position embeddings are {kind!r}; name a model with absolute ones"
            )
        return super().positions(config)

    def word_embeddings(self, token_ids_t: Tensor) -> Tensor:
        return self.embed_tokens(token_ids_t)

    def enter(self, embeddings_te: Tensor, positions_t: Tensor) -> Tensor:
        return self.embedding_norm(embeddings_te + self.embed_positions(positions_t))

    def finish(self, h_rd: Tensor) -> Tensor:
        return h_rd


def _layer(layer: Any) -> BackboneLayer:
    attention = layer.attention.self
    projections = [attention.query, attention.key, attention.value]
    heads = attention.num_attention_heads
    return BackboneLayer(
        pre_norm=False,
        qkv=Projections([p.weight for p in projections], [p.bias for p in projections], heads, heads),
        attention_norm=layer.attention.output.LayerNorm,
        attend_out=layer.attention.output.dense,
        ffn_norm=layer.output.LayerNorm,
        ffn=nn.Sequential(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense),
    )
