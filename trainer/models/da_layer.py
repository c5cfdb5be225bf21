"""The dynamically adapted layer (Section 2.3.3, Fig. 4): a frozen layer, two masks, adapters and a router.

Legend: T rows of packed tokens, Q rows that go on: all of them, or in the last layer those that are read.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from trainer.architecture import Kind
from trainer.config import ModelConfig
from trainer.models.adapters import Adapted, Adapter
from trainer.models.attention import QKV, causal_attention, context_attention
from trainer.models.backbones.base import BackboneLayer
from trainer.models.backbones.projections import Rotation
from trainer.models.router import Router
from trainer.models.streams import PackedStreams


def plain_layer(
    layer: BackboneLayer, h_td: Tensor, streams: PackedStreams, rotation: Rotation | None, last: bool
) -> Tensor:
    """An unchanged backbone layer over packed streams, [T, hidden] to [Q, hidden]."""
    h_qd, _, qkv = _project(layer, h_td, streams, rotation, last)
    segments = streams.read_rows_only if last else streams.every_row
    h_qd = h_qd + layer.attend_out(causal_attention(qkv, segments.causal))
    h_qd = h_qd if layer.pre_norm else layer.attention_norm(h_qd)
    h_qd = h_qd + layer.ffn(layer.ffn_norm(h_qd) if layer.pre_norm else h_qd)
    return h_qd if layer.pre_norm else layer.ffn_norm(h_qd)


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
        rotation: Rotation | None,
        last: bool,
        column_sd: Tensor | None,
    ) -> Tensor:
        """One layer, [T, hidden] to [Q, hidden].

        Args:
            layer: the frozen layer.
            h_td: its input.
            streams: the packed streams.
            rotation: rotary embeddings of the tokens, or None.
            last: go on with the rows that are read alone.
            column_sd: projected collaborative vectors [S, hidden] before the norm, or None.
        """
        h_qd, x_qd, qkv = _project(layer, h_td, streams, rotation, last)
        segments = streams.read_rows_only if last else streams.every_row
        attended = {"causal": causal_attention(qkv, segments.causal)} if "causal" in self.masks else {}
        if "context" in self.masks:
            column, spans = None, segments.context_alone
            if column_sd is not None:
                column_x = layer.attention_norm(column_sd) if layer.pre_norm else column_sd
                column, spans = layer.qkv.keys_values(column_x, None), segments.context
            attended["context"] = context_attention(qkv, spans, column)
        return self.combine(layer, h_qd, x_qd, attended)

    def combine(self, layer: BackboneLayer, h_qd: Tensor, x_qd: Tensor, attended: Mapping[str, Tensor]) -> Tensor:
        """All that follows attention, row by row: adapters, router, residuals, norms, feed-forward network.

        Args:
            layer: the frozen layer.
            h_qd: the layer's input.
            x_qd: the attention's input: `h_qd` after the norm of a pre-norm layer.
            attended: [Q, H · D] by mask, before the output projection.
        """
        outputs = {mask: layer.attend_out(attended_qd) for mask, attended_qd in attended.items()}
        branches = [outputs[mask] for mask in self.masks]
        if self.relation is not None:
            branches = [adapted(x_qd, branch) for adapted, branch in zip(self.relation, branches, strict=True)]
        h_qd = h_qd + (branches[0] if self.router is None else self.router(*branches))
        h_qd = h_qd if layer.pre_norm else layer.attention_norm(h_qd)
        y_qd = layer.ffn_norm(h_qd) if layer.pre_norm else h_qd
        ffn_qd = layer.ffn(y_qd)
        h_qd = h_qd + (ffn_qd if self.recommendation is None else self.recommendation(y_qd, ffn_qd))
        return h_qd if layer.pre_norm else layer.ffn_norm(h_qd)


def _project(
    layer: BackboneLayer, h_td: Tensor, streams: PackedStreams, rotation: Rotation | None, last: bool
) -> tuple[Tensor, Tensor, QKV]:
    """The layer's and the attention's input at the rows that go on, and queries, keys and values."""
    x_td = layer.attention_norm(h_td) if layer.pre_norm else h_td
    if not last:
        return h_td, x_td, layer.qkv(x_td, rotation)
    keys, values = layer.qkv.keys_values(x_td, rotation)
    h_rd, x_rd = (x.index_select(0, streams.read_rows_r) for x in (h_td, x_td))
    if rotation is not None:
        rotation = (rotation[0].index_select(0, streams.read_rows_r), rotation[1].index_select(0, streams.read_rows_r))
    return h_rd, x_rd, (layer.qkv.queries(x_rd, rotation), keys, values)


def _adapted(hidden: int, kind: Kind, config: ModelConfig) -> Adapted:
    adapters = config.adapters
    adapter = Adapter(hidden, adapters.bottleneck, adapters.activation)
    return Adapted(adapter, kind)
