"""The OPT family: pre-norm members and the post-norm OPT-350m."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trainer.models.backbones.base import Backbone, BackboneLayer
from trainer.models.backbones.projections import Projections


class OPTBackbone(Backbone):
    """An OPT decoder.

    Args:
        model: a loaded `OPTModel`; it is taken apart and frozen.
    """

    def __init__(self, model: Any) -> None:
        decoder, width = model.decoder, model.config.word_embed_proj_dim
        pre_norm = model.config.do_layer_norm_before
        super().__init__(model, (_layer(layer, pre_norm) for layer in decoder.layers), width, width)
        self.embed_tokens: nn.Module = decoder.embed_tokens
        self.embed_positions = nn.Embedding.from_pretrained(decoder.embed_positions.weight.detach())
        self.position_offset: int = decoder.embed_positions.offset
        self.project_in: nn.Module = decoder.project_in or nn.Identity()
        self.project_out: nn.Module = decoder.project_out or nn.Identity()
        self.final_norm: nn.Module = decoder.final_layer_norm or nn.Identity()

    def word_embeddings(self, token_ids_t: Tensor) -> Tensor:
        return self.embed_tokens(token_ids_t)

    def enter(self, embeddings_te: Tensor, positions_t: Tensor) -> Tensor:
        positions = self.embed_positions(positions_t + self.position_offset)
        return self.project_in(embeddings_te) + positions

    def finish(self, h_rd: Tensor) -> Tensor:
        return self.project_out(self.final_norm(h_rd))


def _layer(layer: Any, pre_norm: bool) -> BackboneLayer:
    attention = layer.self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    biases = None if attention.q_proj.bias is None else [p.bias for p in projections]
    return BackboneLayer(
        pre_norm=pre_norm,
        qkv=Projections([p.weight for p in projections], biases, attention.num_heads, attention.num_heads),
        attention_norm=layer.self_attn_layer_norm,
        attend_out=attention.out_proj,
        ffn_norm=layer.final_layer_norm,
        ffn=nn.Sequential(layer.fc1, layer.activation_fn, layer.fc2),
    )
