"""DARec's scores after histories as one function of padded tensors, without Python in between: what ONNX can hold.

The packed streams of training and evaluation are planned on the host. Here every item has as many token slots as the
longest, and one for its `[SEQ]`; positions, spans and masks are computed from the item numbers. It gives what the
packed forward gives, and is slower.

Legend: B histories, N items of the longest, W slots of an item, T = N · W slots of a history, I items, U users.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from trainer.models.backbones.base import BackboneLayer
from trainer.models.backbones.projections import Rotation
from trainer.models.collaborative.fold_in import FoldIn
from trainer.models.da_layer import DALayer
from trainer.models.darec import CollaborativeColumn, DARec
from trainer.models.padded_prior import PaddedPrior, Partners
from trainer.models.streams import StreamPacker


class PaddedScores(nn.Module):
    """Scores of all items after histories.

    Args:
        model: the trained model; its weights are shared.
        packer: whose items' tokens are read.
        fold_in: gives users who were not trained on their CF vector; the average user's without it.
        partners: relations of the items, for a model with a prior from counts.

    Raises:
        ValueError: if a model with a prior comes without them.
    """

    tokens_iw: Tensor
    lengths_i: Tensor
    users_ur: Tensor
    items_ir: Tensor
    fold_weight: Tensor
    fold_bias: Tensor

    def __init__(
        self, model: DARec, packer: StreamPacker, fold_in: FoldIn | None = None, partners: Partners | None = None
    ) -> None:
        super().__init__()
        self.model, self.prior = model, None
        if model.prior is not None:
            if partners is None:
                raise ValueError("a model with a prior needs the relations of its items")
            self.prior = PaddedPrior(model.prior, partners)
        tokens, lengths = packer.padded()
        # A last row without tokens stands for the filling, -1.
        self.register_buffer("tokens_iw", torch.cat([torch.from_numpy(tokens), torch.zeros(1, tokens.shape[1]).long()]))
        self.register_buffer("lengths_i", torch.cat([torch.from_numpy(lengths), torch.zeros(1).long()]))
        self.fold_in = fold_in
        cf = model.collaborative
        if cf is not None:
            self.register_buffer("users_ur", torch.cat([cf.users(), cf.users().mean(0, keepdim=True)]).detach())
            self.register_buffer("items_ir", torch.cat([cf.items(), torch.zeros(1, cf.representation)]).detach())
        if fold_in is not None:
            self.register_buffer("fold_weight", fold_in.weight)
            self.register_buffer("fold_bias", fold_in.bias)

    def forward(self, items: Tensor, users: Tensor) -> Tensor:
        """Scores [B, I].

        Args:
            items: [B, N] item numbers, oldest first, filled with -1 on the left; at least one item each.
            users: [B] user numbers, -1 for users who were not trained on.
        """
        model, backbone = self.model, self.model.backbone
        filled = torch.where(items < 0, len(self.lengths_i) - 1, items)
        real, positions = self._slots(items, filled)
        words = backbone.word_embeddings(self._ids(filled).flatten())
        is_seq = (torch.arange(real.shape[2], device=items.device) == real.shape[2] - 1).expand_as(real).flatten()
        words = torch.where(is_seq[:, None], model.special[0].to(words.dtype), words)
        h = backbone.enter(words, positions.flatten())
        rotation = backbone.rotation(positions.flatten())
        masks = _masks(real)
        columns = []
        for column in model.columns:
            assert isinstance(column, CollaborativeColumn)
            columns.append(column.user(self._vectors(filled, users)))
        da_layers = 0
        for k, layer in enumerate(backbone.layers):
            last = k == len(backbone.layers) - 1
            own = columns[da_layers % len(columns)] if columns else None
            h = self._layer(k, layer, h, masks, rotation, last, own)
            da_layers += str(k) in model.da_layers
        head = model.scoring_head()
        scores = linear(backbone.finish(h), head.weight, head.bias)
        return scores if self.prior is None else scores + self.prior(filled)

    def _ids(self, filled: Tensor) -> Tensor:
        """[B, N, W] vocabulary ids; the slot of `[SEQ]` and those without a token hold 0."""
        tokens = self.tokens_iw[filled]
        return torch.cat([tokens, torch.zeros_like(tokens[:, :, :1])], 2)

    def _slots(self, items: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, W] which slots hold a token or `[SEQ]`, and the position of each."""
        slots = torch.arange(self.tokens_iw.shape[1], device=items.device)
        lengths = self.lengths_i[filled]
        present = items >= 0
        real = torch.cat([slots < lengths[:, :, None], present[:, :, None]], 2)
        counts = lengths + present
        before = counts.cumsum(1) - counts
        within = torch.cat([slots.expand(*lengths.shape, -1), lengths[:, :, None]], 2)
        return real, torch.where(real, before[:, :, None] + within, 0)

    def _vectors(self, filled: Tensor, users: Tensor) -> Tensor:
        """[B, representation] CF vectors."""
        known = self.users_ur[torch.where(users < 0, len(self.users_ur) - 1, users)]
        if self.fold_in is None:
            return known
        sums = self.items_ir[filled].sum(1)
        counts = (filled < len(self.lengths_i) - 1).sum(1, keepdim=True).to(sums.dtype)
        features = torch.cat([sums / counts, sums / counts.sqrt()], 1)
        return torch.where(users[:, None] < 0, features @ self.fold_weight + self.fold_bias, known)

    def _layer(
        self,
        k: int,
        layer: nn.Module,
        h: Tensor,
        masks: tuple[Tensor, Tensor],
        rotation: Rotation | None,
        last: bool,
        column: Tensor | None,
    ) -> Tensor:
        """One layer, [B · T, hidden] to the same, or to [B, hidden] of the last slots."""
        assert isinstance(layer, BackboneLayer)
        causal, context = masks
        batch, slots = causal.shape[0], causal.shape[3]
        x = layer.attention_norm(h) if layer.pre_norm else h
        keys, values = layer.qkv.keys_values(x, rotation)
        if last:
            h, x = (tensor.unflatten(0, (batch, slots))[:, -1] for tensor in (h, x))
            if rotation is not None:
                cos, sin = (part.unflatten(0, (batch, slots))[:, -1] for part in rotation)
                rotation = (cos, sin)
            causal, context = causal[:, :, -1:], context[:, :, -1:]
        queries = layer.qkv.queries(x, rotation)
        queries, keys, values = (tensor.unflatten(0, (batch, -1)).transpose(1, 2) for tensor in (queries, keys, values))
        if str(k) not in self.model.da_layers:
            return _plain(layer, h, _attend(queries, keys, values, causal))
        da = self.model.da_layers[str(k)]
        assert isinstance(da, DALayer)
        attended = {}
        if "causal" in da.masks:
            attended["causal"] = _attend(queries, keys, values, causal)
        if "context" in da.masks:
            if column is None:
                attended["context"] = _attend(queries, keys, values, context)
            else:
                column_x = layer.attention_norm(column) if layer.pre_norm else column
                key, value = (part[:, :, None] for part in layer.qkv.keys_values(column_x, None))
                keys, values = torch.cat([key, keys], 2), torch.cat([value, values], 2)
                seen = torch.ones_like(context[..., :1])
                attended["context"] = _attend(queries, keys, values, torch.cat([seen, context], 3))
        return torch.as_tensor(da.combine(layer, h, x, attended))


def _masks(real: Tensor) -> tuple[Tensor, Tensor]:
    """Causal and context mask [B, 1, T, T]. Every slot sees itself, so that the softmax of an empty one is defined."""
    _, n, w = real.shape
    slots = torch.arange(n * w, device=real.device)
    same_slot = slots[:, None] == slots
    keys = real.flatten(1)[:, None]
    causal = (slots[:, None] >= slots) & keys | same_slot
    context = (slots[:, None] // w == slots // w) & keys | same_slot
    return causal[:, None], context[:, None]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """[B, H, Q, D] queries, [B, G, K, D] keys and values to [B · Q, H · D]."""
    repeats = queries.shape[1] // keys.shape[1]
    if repeats > 1:
        keys, values = (tensor.repeat_interleave(repeats, 1) for tensor in (keys, values))
    attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def _plain(layer: BackboneLayer, h: Tensor, attended: Tensor) -> Tensor:
    h = h + layer.attend_out(attended)
    h = h if layer.pre_norm else layer.attention_norm(h)
    h = h + layer.ffn(layer.ffn_norm(h) if layer.pre_norm else h)
    return h if layer.pre_norm else layer.ffn_norm(h)
