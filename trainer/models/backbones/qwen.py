"""The Qwen 2 and Qwen 3 families: Llama with a window over the past in some members.

Qwen 2 (and 2.5) has biases on Q, K and V, Qwen 3 has norms of every query and key head.
"""

from __future__ import annotations

from typing import Any

from trainer.models.backbones.llama import LlamaBackbone


class QwenBackbone(LlamaBackbone):
    """A Qwen 2 or Qwen 3 decoder.

    Args:
        model: a loaded `Qwen2Model` or `Qwen3Model`; it is taken apart and frozen.
    """

    @classmethod
    def positions(cls, config: Any) -> int:
        known = super().positions(config)
        # A layer with a sliding window sees all of a stream that is no longer than the window, and of no other.
        return min(known, config.sliding_window or known) if "sliding_attention" in config.layer_types else known
