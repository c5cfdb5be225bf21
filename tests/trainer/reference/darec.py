"""The model and its losses, one stream and one term at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference.bert import Bert, Roberta
from reference.collaborative import COLLABORATIVE
from reference.family import ACTIVATIONS, Family
from reference.gpt2 import GPT2
from reference.llama import Llama
from reference.opt import OPT
from trainer.config import ModelConfig

FAMILIES: dict[str, type[Family]] = {
    "bert": Bert,
    "gpt2": GPT2,
    "llama": Llama,
    "opt": OPT,
    "qwen2": Llama,
    "qwen3": Llama,
    "roberta": Roberta,
}
KINDS = {"S": "serial", "P": "parallel"}


class ReferenceDARec:
    """
    Args:
        hf_model: a Hugging Face model.
        trained: trained tensors by name.
        config: the variant.
        collaborative: the CF model; by name from `COLLABORATIVE` if absent.
    """

    def __init__(self, hf_model, trained: dict[str, Tensor], config: ModelConfig, collaborative=None):
        self.lm = FAMILIES[hf_model.config.model_type](hf_model)
        self.w = trained
        self.config = config
        self.collaborative = collaborative
        if collaborative is None and config.collaborative.model != "none":
            self.collaborative = COLLABORATIVE[config.collaborative.model](trained)
        frequency = config.adapters.replacement_frequency
        self.replaced = [k for k in range(self.lm.layers) if (k + 1) % frequency == 0]

    # -- masks, m rows and m + 1 columns; column 0 is the collaborative representation ------------------------------

    def causal_mask(self, m: int) -> Tensor:
        mask = torch.zeros(m, m + 1, dtype=torch.bool)
        for t in range(m):
            for s in range(m):
                mask[t, s + 1] = s <= t
        return mask

    def context_mask(self, spans: list[int], with_column: bool) -> Tensor:
        m = len(spans)
        mask = torch.zeros(m, m + 1, dtype=torch.bool)
        for t in range(m):
            mask[t, 0] = with_column
            for s in range(m):
                mask[t, s + 1] = spans[s] == spans[t]
        return mask

    # -- adapters ---------------------------------------------------------------------------------------------------

    def kind(self, done: int, slot: int) -> str:
        text = self.config.architecture
        return text if text in KINDS.values() else KINDS[text.split("-")[done][slot]]

    def adapter(self, name: str, h: Tensor) -> Tensor:
        down = h @ self.w[f"{name}.down.weight"].T + self.w[f"{name}.down.bias"]
        activation = self.config.adapters.activation
        inner = down if activation == "identity" else ACTIVATIONS[activation](down)
        return inner @ self.w[f"{name}.up.weight"].T + self.w[f"{name}.up.bias"] + h

    def adapted(self, name: str, kind: str, x: Tensor, block: Tensor) -> Tensor:
        if not self.config.adapters.enabled:
            return block
        adapter = f"{name}.adapter"
        return self.adapter(adapter, block) if kind == "serial" else (block + self.adapter(adapter, x)) / 2

    # -- one layer ----------------------------------------------------------------------------------------------------

    def attention(self, k: int, x: Tensor, column: Tensor, mask: Tensor) -> Tensor:
        """The collaborative column stands at position 0, the place of the stream's first token."""
        lm, m = self.lm, len(x)
        with_column, positions = torch.cat([column[None], x]), list(range(m))
        query = lm.query(k, x, positions)
        key, value = lm.key(k, with_column, [0, *positions]), lm.value(k, with_column)
        heads = []
        for head in range(lm.heads):
            group = head // (lm.heads // lm.groups)
            scores = lm.score(k, query[:, head], key[:, group]).masked_fill(~mask, -math.inf)
            exponentials = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
            heads.append(exponentials / exponentials.sum(dim=1, keepdim=True) @ value[:, group])
        return lm.out(k, torch.cat(heads, dim=1))

    def mixed_attention(self, k: int, x: Tensor, column: Tensor, masks: list[Tensor]) -> Tensor:
        """All branches of a DALayer, through adapters and router."""
        done, name = self.replaced.index(k), f"da_layers.{k}"
        branches = [
            self.adapted(f"{name}.relation.{slot}", self.kind(done, slot), x, self.attention(k, x, column, mask))
            for slot, mask in enumerate(masks)
        ]
        if len(branches) == 1:
            return branches[0]
        weight, bias = self.w[f"{name}.router.gate.weight"], self.w[f"{name}.router.gate.bias"]
        gate = torch.exp(torch.cat(branches, dim=1) @ weight.T + bias)
        beta = gate / gate.sum(dim=1, keepdim=True)
        return beta[:, 0:1] * branches[0] + beta[:, 1:2] * branches[1]

    def layer(self, k: int, h: Tensor, column: Tensor | None, spans: list[int]) -> Tensor:
        lm, replaced = self.lm, k in self.replaced
        x = lm.norm_1(k, h) if lm.pre_norm else h
        c = torch.zeros_like(h[0]) if column is None else column
        c = lm.norm_1(k, c) if lm.pre_norm else c
        causal, context = self.causal_mask(len(h)), self.context_mask(spans, column is not None)
        if replaced:
            masks = [{"causal": causal, "context": context}[mask] for mask in self.config.masks]
            h = h + self.mixed_attention(k, x, c, masks)
        else:
            h = h + self.attention(k, x, c, causal)
        if not lm.pre_norm:
            h = lm.norm_1(k, h)
        y = lm.norm_2(k, h) if lm.pre_norm else h
        ffn = lm.ffn(k, y)
        if replaced:
            ffn = self.adapted(f"da_layers.{k}.recommendation", self.kind(self.replaced.index(k), 2), y, ffn)
        h = h + ffn
        return h if lm.pre_norm else lm.norm_2(k, h)

    # -- one stream -------------------------------------------------------------------------------------------------

    def hidden(self, tokens: list[int | str], spans: list[int], vector: Tensor | None, kind: str) -> Tensor:
        """States [m, output]; `vector` is the e^user or e^item of a stream of this `kind`."""
        special = dict(zip(["[SEQ]", "[ALIGN]"], self.w["special"], strict=True))
        rows = [special[token] if isinstance(token, str) else self.lm.embedding(token) for token in tokens]
        h = self.lm.enter(torch.stack(rows))
        for k in range(self.lm.layers):
            column = None
            if vector is not None and k in self.replaced:
                shared = self.config.collaborative.projection == "shared"
                name = f"columns.{0 if shared else self.replaced.index(k)}.{kind}"
                column = self.w[f"{name}.weight"] @ vector + self.w[f"{name}.bias"]
            h = self.layer(k, h, column, spans)
        return self.lm.finish(h)

    def sequence_states(self, item_tokens: list[list[int]], history: list[int], user: int | None) -> list[Tensor]:
        """The state of every [SEQ]; user None was not trained on."""
        tokens, spans, ends = [], [], []
        for place, item in enumerate(history):
            tokens += [*item_tokens[item], "[SEQ]"]
            spans += [place] * (len(item_tokens[item]) + 1)
            ends.append(len(tokens) - 1)
        vector = None
        if self.collaborative is not None:
            users = self.collaborative.users()
            vector = sum(users) / len(users) if user is None else users[user]
        h = self.hidden(tokens, spans, vector, "user")
        return [h[end] for end in ends]

    def align_state(self, item_tokens: list[list[int]], prompt: list[int], item: int) -> Tensor:
        tokens = [*prompt, *item_tokens[item], "[ALIGN]"]
        spans = [0] * len(prompt) + [1] * (len(item_tokens[item]) + 1)
        vector = None if self.collaborative is None else self.collaborative.items()[item]
        return self.hidden(tokens, spans, vector, "item")[-1]

    # -- losses -----------------------------------------------------------------------------------------------------

    def cross_entropy(self, state: Tensor, target: int) -> Tensor:
        logits = self.w["item_head.weight"] @ state + self.w["item_head.bias"]
        if self.config.item_text is not None:
            logits = logits + self.w["text_head.vectors_it"] @ (self.w["text_head.projection_td"] @ state)
        return -torch.log(torch.exp(logits[target] - logits.max()) / torch.exp(logits - logits.max()).sum())

    def info_nce(self, state: Tensor, positive: Tensor, negatives: list[Tensor], tau: float) -> Tensor:
        def f(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp((a @ b) / (a.norm() * b.norm()) / tau)

        return -torch.log(f(state, positive) / (f(state, positive) + sum(f(state, n) for n in negatives)))
