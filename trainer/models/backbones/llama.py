"""The Llama family: pre-norm, rotary positions, grouped queries, RMSNorm, gated feed-forward network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trainer.models.backbones.base import Backbone, BackboneLayer
from trainer.models.backbones.projections import Projections, Rotation
from trainer.models.backbones.rotary import RMSNorm, RotaryEmbedding


class LlamaBackbone(Backbone):
    """A Llama decoder, or one of a family that is built like it.

    Args:
        model: a loaded `LlamaModel`; it is taken apart and frozen.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model, (_layer(layer, model.config) for layer in model.layers))
        self.embed_tokens: nn.Embedding = model.embed_tokens
        self.rotary = RotaryEmbedding(model.rotary_emb)
        self.final_norm = RMSNorm(model.norm)

    @classmethod
    def positions(cls, config: Any) -> int:
        known = super().positions(config)
        rope = config.rope_parameters
        # LongRoPE turns all positions of a stream by other angles once it is longer than this.
        return min(known, rope["original_max_position_embeddings"]) if rope["rope_type"] == "longrope" else known

    def word_embeddings(self, token_ids_t: Tensor) -> Tensor:
        return self.embed_tokens(token_ids_t)

    def enter(self, embeddings_te: Tensor, positions_t: Tensor) -> Tensor:
        return embeddings_te

    def rotation(self, positions_t: Tensor) -> Rotation:
        rotation: Rotation = self.rotary(positions_t, self.embed_tokens.weight.dtype)
        return rotation

    def finish(self, h_rd: Tensor) -> Tensor:
        return self.final_norm(h_rd)


def _layer(layer: Any, config: Any) -> BackboneLayer:
    attention = layer.self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    biases = None if attention.q_proj.bias is None else [p.bias for p in projections]
    return BackboneLayer(
        pre_norm=True,
        qkv=Projections(
            [p.weight for p in projections],
            biases,
            config.num_attention_heads,
            config.num_key_value_heads,
            # Qwen 3 has norms of every query and key head.
            RMSNorm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            RMSNorm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        ),
        attention_norm=RMSNorm(layer.input_layernorm),
        attend_out=attention.o_proj,
        ffn_norm=RMSNorm(layer.post_attention_layernorm),
        ffn=layer.mlp,
    )
