"""The dynamically adapted layer (Section 2.3.3, Fig. 4): a frozen layer, two masks, adapters and a router."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.architecture import Kind
from trainer.config import ModelConfig
from trainer.models.adapters import Adapted, Adapter
from trainer.models.attention import causal_attention, context_attention
from trainer.models.backbones.base import BackboneLayer
from trainer.models.backbones.projections import Rotation
from trainer.models.router import Router
from trainer.models.streams import PackedStreams


def plain_layer(layer: BackboneLayer, h_td: Tensor, streams: PackedStreams, rotation: Rotation | None) -> Tensor:
    """An unchanged backbone layer over packed streams."""
    x_td = layer.attention_norm(h_td) if layer.pre_norm else h_td
    h_td = h_td + layer.attend_out(causal_attention(layer.qkv(x_td, rotation), streams))
    h_td = h_td if layer.pre_norm else layer.attention_norm(h_td)
    h_td = h_td + layer.ffn(layer.ffn_norm(h_td) if layer.pre_norm else h_td)
    return h_td if layer.pre_norm else layer.ffn_norm(h_td)


class DALayer(nn.Module):
    """The trained parts of one DALayer; the frozen layer is handed to `forward`.

    Args:
        hidden: width of the backbone.
        kinds: serial or parallel by slot: causal, context, recommendation.
        config: masks and adapter sizes. With one mask there is no router and the `context` slot is not used.
    """

    def __init__(self, hidden: int, kinds: Mapping[str, Kind], config: ModelConfig) -> None:
        super().__init__()
        self.masks = config.masks
        slots = ("causal", "context")[: len(config.masks)]
        self.relation: nn.ModuleList | None = None
        self.recommendation: Adapted | None = None
        if config.adapters.enabled:
            self.relation = nn.ModuleList(_adapted(hidden, kinds[slot], config) for slot in slots)
            self.recommendation = _adapted(hidden, kinds["recommendation"], config)
        self.router = Router(hidden) if len(config.masks) == 2 else None

    def forward(
        self,
        layer: BackboneLayer,
        h_td: Tensor,
        streams: PackedStreams,
        column_sd: Tensor | None,
        rotation: Rotation | None,
    ) -> Tensor:
        """One layer.

        Args:
            layer: the frozen layer.
            h_td: input [T, hidden].
            streams: the packed streams.
            column_sd: projected collaborative vectors [S, hidden] before the norm, or None.
            rotation: rotary embeddings of the tokens, or None.
        """
        x_td = layer.attention_norm(h_td) if layer.pre_norm else h_td
        h_td = h_td + self._mixed_attention(layer, x_td, streams, column_sd, rotation)
        h_td = h_td if layer.pre_norm else layer.attention_norm(h_td)
        y_td = layer.ffn_norm(h_td) if layer.pre_norm else h_td
        ffn_td = layer.ffn(y_td)
        h_td = h_td + (ffn_td if self.recommendation is None else self.recommendation(y_td, ffn_td))
        return h_td if layer.pre_norm else layer.ffn_norm(h_td)

    def _mixed_attention(
        self,
        layer: BackboneLayer,
        x_td: Tensor,
        streams: PackedStreams,
        column_sd: Tensor | None,
        rotation: Rotation | None,
    ) -> Tensor:
        qkv = layer.qkv(x_td, rotation)
        attended: dict[str, Tensor] = {}
        if "causal" in self.masks:
            attended["causal"] = layer.attend_out(causal_attention(qkv, streams))
        if "context" in self.masks:
            column = None
            if column_sd is not None:
                column_x = layer.attention_norm(column_sd) if layer.pre_norm else column_sd
                column = layer.qkv.keys_values(column_x, None)
            attended["context"] = layer.attend_out(context_attention(qkv, streams, column))
        branches = [attended[mask] for mask in self.masks]
        if self.relation is not None:
            branches = [adapted(x_td, branch) for adapted, branch in zip(self.relation, branches, strict=True)]
        return branches[0] if self.router is None else torch.as_tensor(self.router(*branches))


def _adapted(hidden: int, kind: Kind, config: ModelConfig) -> Adapted:
    adapters = config.adapters
    adapter = Adapter(hidden, adapters.bottleneck, adapters.activation)
    return Adapted(adapter, kind)
