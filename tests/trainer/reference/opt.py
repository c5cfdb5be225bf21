"""OPT, written down literally."""

from __future__ import annotations

from torch import Tensor

from reference.family import ACTIVATIONS, Family


class OPT(Family):
    def __init__(self, hf_model):
        super().__init__(hf_model)
        self.pre_norm = self.config.do_layer_norm_before

    def embedding(self, token: int) -> Tensor:
        return self.w["decoder.embed_tokens.weight"][token]

    def enter(self, rows: Tensor) -> Tensor:
        if "decoder.project_in.weight" in self.w:
            rows = self.linear("decoder.project_in", rows)
        return rows + self.w["decoder.embed_positions.weight"][2 : 2 + len(rows)]

    def norm_1(self, k: int, h: Tensor) -> Tensor:
        return self.layer_norm(f"decoder.layers.{k}.self_attn_layer_norm", h, 1e-5)

    def norm_2(self, k: int, h: Tensor) -> Tensor:
        return self.layer_norm(f"decoder.layers.{k}.final_layer_norm", h, 1e-5)

    def query(self, k: int, x: Tensor, positions: list[int]) -> Tensor:
        return self.split(self.linear(f"decoder.layers.{k}.self_attn.q_proj", x), self.heads)

    def key(self, k: int, x: Tensor, positions: list[int]) -> Tensor:
        return self.split(self.linear(f"decoder.layers.{k}.self_attn.k_proj", x), self.groups)

    def value(self, k: int, x: Tensor) -> Tensor:
        return self.split(self.linear(f"decoder.layers.{k}.self_attn.v_proj", x), self.groups)

    def out(self, k: int, attended: Tensor) -> Tensor:
        return self.linear(f"decoder.layers.{k}.self_attn.out_proj", attended)

    def ffn(self, k: int, x: Tensor) -> Tensor:
        inner = ACTIVATIONS[self.config.activation_function](self.linear(f"decoder.layers.{k}.fc1", x))
        return self.linear(f"decoder.layers.{k}.fc2", inner)

    def finish(self, h: Tensor) -> Tensor:
        if "decoder.final_layer_norm.weight" in self.w:
            h = self.layer_norm("decoder.final_layer_norm", h, 1e-5)
        return self.linear("decoder.project_out", h) if "decoder.project_out.weight" in self.w else h
