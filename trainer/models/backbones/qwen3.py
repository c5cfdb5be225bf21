"""The Qwen 3 family: Llama with norms of every query and key head, and the windows of Qwen 2."""

from __future__ import annotations

from transformers import Qwen3Model

from trainer.models.backbones.qwen2 import Qwen2Backbone

MODEL = Qwen3Model
BACKBONE = Qwen2Backbone
