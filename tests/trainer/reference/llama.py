"""Llama and the families that are built like it, written down literally."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference.family import ACTIVATIONS, Family


class Llama(Family):
    """Llama, and Qwen 2 and 3, whose biases and head norms are there or not."""

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        mean_square = (x**2).mean(-1, keepdim=True)
        return x / torch.sqrt(mean_square + self.config.rms_norm_eps) * self.w[f"{name}.weight"]

    def rotated(self, x: Tensor, positions: list[int]) -> Tensor:
        """Turns the pair (x_i, x_{i + D/2}) of every head by the angle position · frequency_i."""
        half = self.size // 2
        out = torch.empty_like(x)
        for i, frequency in enumerate(self.frequencies()):
            # Angles in float32, as Hugging Face computes them.
            angle = torch.tensor(positions, dtype=torch.float32) * frequency
            cos, sin = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
            out[:, :, i] = x[:, :, i] * cos - x[:, :, i + half] * sin
            out[:, :, i + half] = x[:, :, i + half] * cos + x[:, :, i] * sin
        return out

    def frequencies(self) -> Tensor:
        rope = self.config.rope_parameters
        base = 1 / rope["rope_theta"] ** (torch.arange(0, self.size, 2, dtype=torch.float32) / self.size)
        if rope["rope_type"] == "default":
            return base
        assert rope["rope_type"] == "llama3"
        original, low, high = (
            rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        scaled = []
        for frequency in base:
            wavelength = 2 * math.pi / frequency
            smooth = (original / wavelength - low) / (high - low)
            smooth = min(max(smooth, torch.tensor(0.0)), torch.tensor(1.0))
            scaled.append((1 - smooth) * frequency / rope["factor"] + smooth * frequency)
        return torch.stack(scaled)

    def embedding(self, token: int) -> Tensor:
        return self.w["embed_tokens.weight"][token]

    def enter(self, rows: Tensor) -> Tensor:
        return rows

    def norm_1(self, k: int, h: Tensor) -> Tensor:
        return self.rms_norm(f"layers.{k}.input_layernorm", h)

    def norm_2(self, k: int, h: Tensor) -> Tensor:
        return self.rms_norm(f"layers.{k}.post_attention_layernorm", h)

    def query(self, k: int, x: Tensor, positions: list[int]) -> Tensor:
        return self.head("q", k, x, self.heads, positions)

    def key(self, k: int, x: Tensor, positions: list[int]) -> Tensor:
        return self.head("k", k, x, self.groups, positions)

    def head(self, which: str, k: int, x: Tensor, heads: int, positions: list[int]) -> Tensor:
        x = self.split(self.linear(f"layers.{k}.self_attn.{which}_proj", x), heads)
        norm = f"layers.{k}.self_attn.{which}_norm"
        return self.rotated(self.rms_norm(norm, x) if f"{norm}.weight" in self.w else x, positions)

    def value(self, k: int, x: Tensor) -> Tensor:
        return self.split(self.linear(f"layers.{k}.self_attn.v_proj", x), self.groups)

    def out(self, k: int, attended: Tensor) -> Tensor:
        return self.linear(f"layers.{k}.self_attn.o_proj", attended)

    def ffn(self, k: int, x: Tensor) -> Tensor:
        gate = ACTIVATIONS[self.config.hidden_act](self.linear(f"layers.{k}.mlp.gate_proj", x))
        return self.linear(f"layers.{k}.mlp.down_proj", gate * self.linear(f"layers.{k}.mlp.up_proj", x))

    def finish(self, h: Tensor) -> Tensor:
        return self.rms_norm("norm", h)
