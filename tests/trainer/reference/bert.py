"""BERT and RoBERTa, written down literally."""

from __future__ import annotations

from torch import Tensor

from reference.family import ACTIVATIONS, Family


class Bert(Family):
    pre_norm = False
    first_position = 0

    def embedding(self, token: int) -> Tensor:
        return self.w["embeddings.word_embeddings.weight"][token]

    def enter(self, rows: Tensor) -> Tensor:
        first = self.first_position
        rows = rows + self.w["embeddings.position_embeddings.weight"][first : first + len(rows)]
        rows = rows + self.w["embeddings.token_type_embeddings.weight"][0]
        return self.layer_norm("embeddings.LayerNorm", rows, self.config.layer_norm_eps)

    def norm_1(self, k: int, h: Tensor) -> Tensor:
        return self.layer_norm(f"encoder.layer.{k}.attention.output.LayerNorm", h, self.config.layer_norm_eps)

    def norm_2(self, k: int, h: Tensor) -> Tensor:
        return self.layer_norm(f"encoder.layer.{k}.output.LayerNorm", h, self.config.layer_norm_eps)

    def query(self, k: int, x: Tensor, positions: list[int]) -> Tensor:
        return self.split(self.linear(f"encoder.layer.{k}.attention.self.query", x), self.heads)

    def key(self, k: int, x: Tensor, positions: list[int]) -> Tensor:
        return self.split(self.linear(f"encoder.layer.{k}.attention.self.key", x), self.heads)

    def value(self, k: int, x: Tensor) -> Tensor:
        return self.split(self.linear(f"encoder.layer.{k}.attention.self.value", x), self.heads)

    def out(self, k: int, attended: Tensor) -> Tensor:
        return self.linear(f"encoder.layer.{k}.attention.output.dense", attended)

    def ffn(self, k: int, x: Tensor) -> Tensor:
        inner = ACTIVATIONS[self.config.hidden_act](self.linear(f"encoder.layer.{k}.intermediate.dense", x))
        return self.linear(f"encoder.layer.{k}.output.dense", inner)

    def finish(self, h: Tensor) -> Tensor:
        return h


class Roberta(Bert):
    def __init__(self, hf_model):
        super().__init__(hf_model)
        self.first_position = self.config.pad_token_id + 1
