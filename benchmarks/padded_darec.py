"""DARec as research code usually has it, to measure the project's own against: fp32, padded batches, dense masks.

Batches are padded to their longest stream; each of the two attentions has a query, a key and a value projection and a
dense mask of its own; every token goes through every layer; sequences and alignment streams are two forward passes.
It shares the trained tensors and the frozen weights of the `DARec` that it is given, so that gradients can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention

from trainer.config import LossConfig
from trainer.data.batches import Batch
from trainer.data.ragged import Ragged
from trainer.losses import contrastive_loss
from trainer.models.da_layer import DALayer
from trainer.models.darec import DARec

SEQ, ALIGN = -1, -2


class PaddedDARec(nn.Module):
    """The same function as `model`, one padded [B, L] batch at a time. OPT backbones, DALayers everywhere.

    Args:
        model: whose weights are used.
        tokens: token ids of every item.
        prompt: token ids of the alignment prompt.
    """

    def __init__(self, model: DARec, tokens: Ragged, prompt: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.tokens, self.prompt = tokens, np.asarray(prompt, np.int64)

    def losses(self, batch: Batch, config: LossConfig) -> Tensor:
        """L of a batch, as `trainer.losses.darec_losses` has it in `total`."""
        model, terms = self.model, batch.terms
        parts = np.split(batch.inputs, np.cumsum(batch.lengths)[:-1])
        rows = self.sequence_states(parts, batch.users)
        device = rows.device
        total = cross_entropy(model.item_head(rows), _long(batch.targets, device), reduction="sum") / terms.sequence
        positives = batch.targets[batch.contrastive_rows]
        wanted = np.concatenate(
            [batch.align_items[batch.align_counted], positives, batch.contrastive_negatives.ravel()]
        )
        if len(wanted):
            aligned = self.align_states(wanted)
            counted, positive, negative = aligned.split(
                [int(batch.align_counted.sum()), len(positives), batch.contrastive_negatives.size]
            )
        if terms.align:
            targets = _long(batch.align_items[batch.align_counted], device)
            total = (
                total + config.align * cross_entropy(model.item_head(counted), targets, reduction="sum") / terms.align
            )
        if terms.contrastive:
            states = rows[_long(batch.contrastive_rows, device)]
            negatives = negative.unflatten(0, (len(positives), -1))
            contrast = contrastive_loss(states, positive, negatives, config.temperature)
            total = total + config.contrastive * contrast / terms.contrastive
        if terms.collaborative and model.collaborative is not None:
            pairs = (_long(array, device) for array in (batch.cf_users, batch.cf_items, batch.cf_negatives))
            total = total + config.collaborative * model.collaborative.loss_terms(*pairs).sum() / terms.collaborative
        return total

    def sequence_states(self, histories: Sequence[NDArray[np.integer]], users: NDArray[np.integer]) -> Tensor:
        """[SEQ] states of all inputs, user by user, [M, output]."""
        hidden, ends = self._sequences(histories, users)
        return torch.cat([hidden[row, _long(end, hidden.device)] for row, end in enumerate(ends)])

    def states(self, histories: Sequence[NDArray[np.integer]], users: NDArray[np.integer]) -> Tensor:
        """The last [SEQ] state of each history, [histories, output]."""
        hidden, ends = self._sequences(histories, users)
        return hidden[torch.arange(len(ends)), [end[-1] for end in ends]]

    def align_states(self, items: NDArray[np.integer]) -> Tensor:
        """[ALIGN] states, [items, output]."""
        column = None
        if self.model.collaborative is not None:
            table = self.model.collaborative.items()
            column = self.model.columns[0].item(table[_long(items, table.device)])
        rows = [np.concatenate([self.prompt, self.tokens[int(item)], [ALIGN]]) for item in items]
        spans = [np.repeat([0, 1], [len(self.prompt), len(row) - len(self.prompt)]) for row in rows]
        hidden = self._forward(rows, spans, column)
        return hidden[torch.arange(len(rows)), [len(row) - 1 for row in rows]]

    def _sequences(
        self, histories: Sequence[NDArray[np.integer]], users: NDArray[np.integer]
    ) -> tuple[Tensor, list[NDArray[np.integer]]]:
        column = None
        if self.model.collaborative is not None:
            table = self.model.collaborative.users()
            column = self.model.columns[0].user(table[_long(users, table.device)])
        rows, spans, ends = [], [], []
        for history in histories:
            rows.append(np.concatenate([np.append(self.tokens[int(item)], SEQ) for item in history]))
            lengths = [len(self.tokens[int(item)]) + 1 for item in history]
            spans.append(np.repeat(np.arange(len(history)), lengths))
            ends.append(np.cumsum(lengths) - 1)
        return self._forward(rows, spans, column), ends

    def _forward(
        self, rows: list[NDArray[np.integer]], spans: list[NDArray[np.integer]], column_bd: Tensor | None
    ) -> Tensor:
        """[B, L, output] of token rows, padded at the end."""
        backbone, device = self.model.backbone, self.model.special.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        ids = _padded(rows, 0, device)
        words = torch.where(
            ids[..., None] >= 0, backbone.word_embeddings(ids.clamp(min=0)), self.model.special[(-ids - 1).clamp(0, 1)]
        )
        positions = torch.arange(ids.shape[1], device=device)
        causal, context = self._masks(_padded(spans, -1, device), lengths, column_bd is not None)
        h = backbone.enter(words, positions.expand_as(ids))
        for k, layer in enumerate(backbone.layers):
            h = _layer(layer, self.model.da_layers[str(k)], h, causal, context, column_bd)
        return backbone.finish(h)

    @staticmethod
    def _masks(spans: Tensor, lengths: Tensor, with_column: bool) -> tuple[Tensor, Tensor]:
        """Causal and context mask [B, 1, L, L + 1]; the first column is the collaborative one."""
        size = spans.shape[1]
        real = torch.arange(size, device=spans.device) < lengths[:, None]
        causal = torch.ones(size, size, dtype=torch.bool, device=spans.device).tril() & real[:, None]
        # A padding row sees itself, so that its softmax is defined.
        same = (spans[:, :, None] == spans[:, None]) & real[:, None] | torch.eye(
            size, dtype=torch.bool, device=spans.device
        )
        seen = torch.full((len(spans), size, 1), with_column, device=spans.device)
        return torch.cat([torch.zeros_like(seen), causal], -1)[:, None], torch.cat([seen, same], -1)[:, None]


def _layer(
    layer: nn.Module, da: DALayer, h: Tensor, causal: Tensor, context: Tensor, column_bd: Tensor | None
) -> Tensor:
    x = layer.attention_norm(h) if layer.pre_norm else h
    c = torch.zeros_like(x[:, :1]) if column_bd is None else column_bd[:, None]
    c = layer.attention_norm(c) if layer.pre_norm else c
    with_column = torch.cat([c, x], 1)
    q = da.relation[0](x, layer.attend_out(_attention(layer.qkv, x, with_column, causal)))
    p = da.relation[1](x, layer.attend_out(_attention(layer.qkv, x, with_column, context)))
    beta = da.router.gate(torch.cat([q, p], -1)).softmax(-1)
    h = h + beta[..., :1] * q + beta[..., 1:] * p
    h = h if layer.pre_norm else layer.attention_norm(h)
    y = layer.ffn_norm(h) if layer.pre_norm else h
    h = h + da.recommendation(y, layer.ffn(y))
    return h if layer.pre_norm else layer.ffn_norm(h)


def _attention(qkv: nn.Module, x: Tensor, with_column: Tensor, mask: Tensor) -> Tensor:
    weights = qkv.weight.chunk(3)
    biases = [None] * 3 if qkv.bias is None else qkv.bias.chunk(3)
    inputs = (x, with_column, with_column)
    q, k, v = (
        linear(part, weight, bias).unflatten(-1, (qkv.heads, -1)).transpose(1, 2)
        for part, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _padded(rows: list[NDArray[np.integer]], filling: int, device: torch.device) -> Tensor:
    padded = np.full((len(rows), max(map(len, rows))), filling, np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded).to(device)


def _long(array: NDArray[np.integer], device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.int64)).to(device)
