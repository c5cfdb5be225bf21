"""The Qwen 2 family (Qwen 2.5 too): Llama with biases on Q, K and V, and a window over the past in some members."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Model

from trainer.models.backbones.llama import LlamaBackbone


class Qwen2Backbone(LlamaBackbone):
    """A Qwen 2 decoder."""

    @classmethod
    def positions(cls, config: Any) -> int:
        known = super().positions(config)
        # A layer with a sliding window sees all of a stream that is no longer than the window, and of no other.
        return min(known, config.sliding_window or known) if "sliding_attention" in config.layer_types else known


MODEL = Qwen2Model
BACKBONE = Qwen2Backbone
