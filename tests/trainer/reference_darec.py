"""DARec written down literally from the paper: dense masks, explicit softmax, one stream and one term at a time.

Slow on purpose. It shares no code with the fast model: it reads the weights of a Hugging Face OPT and, by name, the
trained tensors of the model under test.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ReferenceDARec:
    def __init__(self, hf_model, trained: dict[str, Tensor], kinds: list[dict[str, str]], activation="identity"):
        self.decoder = hf_model.decoder
        self.config = hf_model.config
        self.w = trained
        self.kinds = kinds
        self.activation = {"identity": lambda h: h, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]

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

    # -- one layer ----------------------------------------------------------------------------------------------------

    def adapter(self, name: str, h: Tensor) -> Tensor:
        down = h @ self.w[f"{name}.down.weight"].T + self.w[f"{name}.down.bias"]
        return self.activation(down) @ self.w[f"{name}.up.weight"].T + self.w[f"{name}.up.bias"] + h

    def attention(self, attention, x: Tensor, x_with_column: Tensor, mask: Tensor) -> Tensor:
        heads, size = attention.num_heads, attention.head_dim
        m = len(x)
        q = attention.q_proj(x).view(m, heads, size)
        k = attention.k_proj(x_with_column).view(m + 1, heads, size)
        v = attention.v_proj(x_with_column).view(m + 1, heads, size)
        out = torch.empty(m, heads, size, dtype=x.dtype)
        for head in range(heads):
            scores = q[:, head] @ k[:, head].T / math.sqrt(size)
            weights = scores.masked_fill(~mask, -math.inf).softmax(dim=1)
            out[:, head] = weights @ v[:, head]
        return attention.out_proj(out.reshape(m, heads * size))

    def adapted(self, name: str, kind: str, x: Tensor, block: Tensor) -> Tensor:
        adapter = f"{name}.adapter"
        return self.adapter(adapter, block) if kind == "serial" else (block + self.adapter(adapter, x)) / 2

    def layer(self, k: int, h: Tensor, column: Tensor | None, spans: list[int]) -> Tensor:
        layer, kinds, name = self.decoder.layers[k], self.kinds[k], f"da_layers.{k}"
        pre_norm = self.config.do_layer_norm_before
        x = layer.self_attn_layer_norm(h) if pre_norm else h
        c = torch.zeros_like(h[0]) if column is None else column
        c = layer.self_attn_layer_norm(c) if pre_norm else c
        with_column = torch.cat([c[None], x])
        q = self.attention(layer.self_attn, x, with_column, self.causal_mask(len(h)))
        p = self.attention(layer.self_attn, x, with_column, self.context_mask(spans, column is not None))
        q = self.adapted(f"{name}.relation.0", kinds["causal"], x, q)
        p = self.adapted(f"{name}.relation.1", kinds["context"], x, p)
        gate = torch.cat([q, p], dim=1) @ self.w[f"{name}.router.gate.weight"].T + self.w[f"{name}.router.gate.bias"]
        beta = gate.softmax(dim=1)
        h = h + beta[:, 0:1] * q + beta[:, 1:2] * p
        if not pre_norm:
            h = layer.self_attn_layer_norm(h)
        y = layer.final_layer_norm(h) if pre_norm else h
        ffn = layer.fc2(layer.activation_fn(layer.fc1(y)))
        h = h + self.adapted(f"{name}.recommendation", kinds["recommendation"], y, ffn)
        return h if pre_norm else layer.final_layer_norm(h)

    # -- one stream -------------------------------------------------------------------------------------------------

    def hidden(self, tokens: list[int | str], spans: list[int], column: Tensor | None) -> Tensor:
        rows = []
        for token in tokens:
            if isinstance(token, str):
                rows.append(self.w["special"][["[SEQ]", "[ALIGN]"].index(token)])
            else:
                rows.append(self.decoder.embed_tokens.weight[token])
        h = torch.stack(rows)
        if self.decoder.project_in is not None:
            h = self.decoder.project_in(h)
        positions = torch.arange(len(tokens)) + self.decoder.embed_positions.offset
        h = h + self.decoder.embed_positions.weight[positions]
        for k in range(len(self.decoder.layers)):
            h = self.layer(k, h, column, spans)
        if self.decoder.final_layer_norm is not None:
            h = self.decoder.final_layer_norm(h)
        return h if self.decoder.project_out is None else self.decoder.project_out(h)

    def user_column(self, user: int) -> Tensor | None:
        if "columns.0.user.weight" not in self.w:
            return None
        vector = self.w["collaborative.user.weight"][user]
        return self.w["columns.0.user.weight"] @ vector + self.w["columns.0.user.bias"]

    def item_column(self, item: int) -> Tensor | None:
        if "columns.0.item.weight" not in self.w:
            return None
        vector = self.w["collaborative.item.weight"][item]
        return self.w["columns.0.item.weight"] @ vector + self.w["columns.0.item.bias"]

    def sequence_states(self, item_tokens: list[list[int]], history: list[int], user: int) -> list[Tensor]:
        tokens, spans, ends = [], [], []
        for place, item in enumerate(history):
            tokens += [*item_tokens[item], "[SEQ]"]
            spans += [place] * (len(item_tokens[item]) + 1)
            ends.append(len(tokens) - 1)
        h = self.hidden(tokens, spans, self.user_column(user))
        return [h[end] for end in ends]

    def align_state(self, item_tokens: list[list[int]], prompt: list[int], item: int) -> Tensor:
        tokens = [*prompt, *item_tokens[item], "[ALIGN]"]
        spans = [0] * len(prompt) + [1] * (len(item_tokens[item]) + 1)
        return self.hidden(tokens, spans, self.item_column(item))[-1]

    # -- losses -----------------------------------------------------------------------------------------------------

    def cross_entropy(self, state: Tensor, target: int) -> Tensor:
        logits = self.w["item_head.weight"] @ state + self.w["item_head.bias"]
        return -torch.log(torch.exp(logits[target] - logits.max()) / torch.exp(logits - logits.max()).sum())

    def info_nce(self, state: Tensor, positive: Tensor, negatives: list[Tensor], tau: float) -> Tensor:
        def f(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp((a @ b) / (a.norm() * b.norm()) / tau)

        return -torch.log(f(state, positive) / (f(state, positive) + sum(f(state, n) for n in negatives)))

    def bpr(self, user: int, item: int, negatives: list[int]) -> Tensor:
        u = self.w["collaborative.user.weight"][user]
        items = self.w["collaborative.item.weight"]
        return torch.stack([-torch.log(torch.sigmoid(u @ items[item] - u @ items[j])) for j in negatives]).mean()

    def neumf_bce(self, user: int, item: int, negatives: list[int]) -> Tensor:
        half = self.w["collaborative.user.weight"].shape[1] // 2

        def logit(i: int) -> Tensor:
            u, v = self.w["collaborative.user.weight"][user], self.w["collaborative.item.weight"][i]
            x = torch.cat([u[half:], v[half:]])
            for layer in ("0", "2"):
                x = torch.relu(
                    self.w[f"collaborative.mlp.{layer}.weight"] @ x + self.w[f"collaborative.mlp.{layer}.bias"]
                )
            features = torch.cat([u[:half] * v[:half], x])
            return (self.w["collaborative.score.weight"] @ features + self.w["collaborative.score.bias"])[0]

        terms = [-torch.log(torch.sigmoid(logit(item)))]
        terms += [-torch.log(1 - torch.sigmoid(logit(j))) for j in negatives]
        return torch.stack(terms).mean()
