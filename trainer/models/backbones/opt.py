"""The OPT family: pre-norm members and the post-norm OPT-350m."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import OPTModel

from trainer.models.backbones.base import Backbone, BackboneLayer
from trainer.models.backbones.projections import Projections


class OPTLayer(BackboneLayer):
    """One `OPTDecoderLayer`; its Q, K and V projections are fused into one."""

    def __init__(self, layer: Any, pre_norm: bool) -> None:
        super().__init__()
        attention = layer.self_attn
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        biases = None if attention.q_proj.bias is None else [p.bias for p in projections]
        self.pre_norm = pre_norm
        self.qkv = Projections([p.weight for p in projections], biases, attention.num_heads, attention.num_heads)
        self.out_proj: nn.Module = attention.out_proj
        self.norm_1: nn.Module = layer.self_attn_layer_norm
        self.norm_2: nn.Module = layer.final_layer_norm
        self.fc1: nn.Module = layer.fc1
        self.fc2: nn.Module = layer.fc2
        self.activation: nn.Module = layer.activation_fn

    def attention_norm(self, h_td: Tensor) -> Tensor:
        return torch.as_tensor(self.norm_1(h_td))

    def attend_out(self, attended_td: Tensor) -> Tensor:
        return torch.as_tensor(self.out_proj(attended_td))

    def ffn_norm(self, h_td: Tensor) -> Tensor:
        return torch.as_tensor(self.norm_2(h_td))

    def ffn(self, x_td: Tensor) -> Tensor:
        return torch.as_tensor(self.fc2(self.activation(self.fc1(x_td))))


class OPTBackbone(Backbone):
    """An OPT decoder.

    Args:
        model: a loaded `OPTModel`; it is taken apart and frozen.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.decoder
        config = model.config
        self.hidden = config.hidden_size
        self.embedding = self.output = config.word_embed_proj_dim
        self.max_positions = config.max_position_embeddings
        self.embed_tokens: nn.Module = decoder.embed_tokens
        self.embed_positions = nn.Embedding.from_pretrained(decoder.embed_positions.weight.detach())
        self.position_offset: int = decoder.embed_positions.offset
        self.project_in: nn.Module = decoder.project_in or nn.Identity()
        self.project_out: nn.Module = decoder.project_out or nn.Identity()
        self.final_norm: nn.Module = decoder.final_layer_norm or nn.Identity()
        self.layers = nn.ModuleList(OPTLayer(layer, config.do_layer_norm_before) for layer in decoder.layers)
        self.requires_grad_(False)
        self.eval()

    def word_embeddings(self, token_ids_t: Tensor) -> Tensor:
        return torch.as_tensor(self.embed_tokens(token_ids_t))

    def enter(self, embeddings_te: Tensor, positions_t: Tensor) -> Tensor:
        positions = self.embed_positions(positions_t + self.position_offset)
        return torch.as_tensor(self.project_in(embeddings_te) + positions)

    def finish(self, h_rd: Tensor) -> Tensor:
        return torch.as_tensor(self.project_out(self.final_norm(h_rd)))


MODEL = OPTModel
BACKBONE = OPTBackbone
