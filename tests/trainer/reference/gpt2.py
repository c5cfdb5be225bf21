"""GPT-2, written down literally."""

from __future__ import annotations

import math

from torch import Tensor

from reference.family import ACTIVATIONS, Family


class GPT2(Family):
    def conv(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def embedding(self, token: int) -> Tensor:
        return self.w["wte.weight"][token]

    def enter(self, rows: Tensor) -> Tensor:
        return rows + self.w["wpe.weight"][: len(rows)]

    def norm_1(self, k: int, h: Tensor) -> Tensor:
        return self.layer_norm(f"h.{k}.ln_1", h, self.config.layer_norm_epsilon)

    def norm_2(self, k: int, h: Tensor) -> Tensor:
        return self.layer_norm(f"h.{k}.ln_2", h, self.config.layer_norm_epsilon)

    def query(self, k: int, x: Tensor, positions: list[int]) -> Tensor:
        return self.split(self.conv(f"h.{k}.attn.c_attn", x)[:, : self.config.n_embd], self.heads)

    def key(self, k: int, x: Tensor, positions: list[int]) -> Tensor:
        d = self.config.n_embd
        return self.split(self.conv(f"h.{k}.attn.c_attn", x)[:, d : 2 * d], self.heads)

    def value(self, k: int, x: Tensor) -> Tensor:
        return self.split(self.conv(f"h.{k}.attn.c_attn", x)[:, 2 * self.config.n_embd :], self.heads)

    def score(self, k: int, query: Tensor, key: Tensor) -> Tensor:
        score = query @ key.T
        if self.config.scale_attn_weights:
            score = score / math.sqrt(self.size)
        return score / (k + 1) if self.config.scale_attn_by_inverse_layer_idx else score

    def out(self, k: int, attended: Tensor) -> Tensor:
        return self.conv(f"h.{k}.attn.c_proj", attended)

    def ffn(self, k: int, x: Tensor) -> Tensor:
        inner = ACTIVATIONS[self.config.activation_function](self.conv(f"h.{k}.mlp.c_fc", x))
        return self.conv(f"h.{k}.mlp.c_proj", inner)

    def finish(self, h: Tensor) -> Tensor:
        return self.layer_norm("ln_f", h, self.config.layer_norm_epsilon)
