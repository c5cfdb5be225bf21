"""DARec: a frozen decoder with DALayers, collaborative injection and an item projection (Sections 2.2 and 2.3)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.architecture import Architecture
from trainer.config import ExecutionConfig, ModelConfig
from trainer.models.backbones.base import Backbone
from trainer.models.collaborative import create_collaborative
from trainer.models.collaborative.base import Interactions
from trainer.models.compiling import compiled
from trainer.models.da_layer import DALayer, plain_layer
from trainer.models.item_head import TextHead
from trainer.models.network import Network
from trainer.models.prior import Prior
from trainer.models.streams import PackedStreams


class CollaborativeColumn(nn.Module):
    """Projects e^user and e^item to the hidden size; c of Fig. 4 (Section 2.3.2)."""

    def __init__(self, representation: int, hidden: int) -> None:
        super().__init__()
        self.user = nn.Linear(representation, hidden)
        self.item = nn.Linear(representation, hidden)

    def forward(self, users_ur: Tensor, items_ir: Tensor) -> Tensor:
        """[U, representation] and [I, representation] to [U + I, hidden]."""
        return torch.cat([self.user(users_ur), self.item(items_ir)])


class DARec(Network):
    """The model.

    Args:
        backbone: the frozen language model; shared between models, never changed.
        config: variant, adapters and CF model.
        n_users: users that are trained on.
        n_items: items, all of them ranked.
        execution: how the layers are computed; plainly when absent.
        interactions: users and items of the training part, for a CF model that is trained on their graph.
        counts: [items] interactions with each item in the training part, for a prior.
        item_texts: [items, dimension] text vectors of `config.item_text`; zeros, to be loaded, when absent.

    Raises:
        ValueError: if `config.architecture` does not fit the number of DALayers, or a prior has no counts.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: ModelConfig,
        n_users: int,
        n_items: int,
        execution: ExecutionConfig | None = None,
        interactions: Interactions | None = None,
        counts: NDArray[np.int64] | None = None,
        item_texts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.execution = execution or ExecutionConfig()
        frequency = config.adapters.replacement_frequency
        replaced = [k for k in range(len(backbone.layers)) if (k + 1) % frequency == 0]
        self.architecture = Architecture.parse(config.architecture, len(replaced))
        self.da_layers = nn.ModuleDict(
            {str(k): DALayer(backbone.hidden, self.architecture.layer(i), config) for i, k in enumerate(replaced)}
        )
        if self.execution.compile:
            for da_layer in self.da_layers.values():
                da_layer.combine = compiled(DALayer.combine).__get__(da_layer)
        self.special = nn.Parameter(torch.randn(2, backbone.embedding) * 0.02)
        """[2, embedding]: [SEQ], [ALIGN]."""
        self.item_head = nn.Linear(backbone.output, n_items)
        nn.init.normal_(self.item_head.weight, std=0.02)
        nn.init.zeros_(self.item_head.bias)
        self.text_head: TextHead | None = None
        if config.item_text is not None:
            self.text_head = TextHead(config.item_text, backbone.output, n_items, item_texts)
            if not config.item_text.free:
                nn.init.zeros_(self.item_head.weight)
                self.item_head.weight.requires_grad_(False)
        self.collaborative = create_collaborative(config.collaborative, n_users, n_items, interactions)
        self.columns = nn.ModuleList()
        if self.collaborative is not None:
            count = 1 if config.collaborative.projection == "shared" else len(replaced)
            sizes = (self.collaborative.representation, backbone.hidden)
            self.columns.extend(CollaborativeColumn(*sizes) for _ in range(count))
            if config.collaborative.training == "frozen":
                self.collaborative.requires_grad_(False)
        self.head_dropout = config.head_dropout
        self.prior: Prior | None = None
        if config.prior is not None:
            if counts is None:
                raise ValueError("a model with a prior needs the counts of the items")
            self.prior = Prior(config.prior, counts)

    def forward(self, streams: PackedStreams, users_ur: Tensor | None = None) -> Tensor:
        """Last hidden states of the rows that are read: [SEQ] states, then [ALIGN] states, [R, output].

        Args:
            streams: the packed streams.
            users_ur: [U, representation] CF vector of each sequence stream's user, in place of those of
                `streams.users`.
        """
        h_td = self.backbone.enter(self._embed(streams), streams.positions_t)
        rotation = self.backbone.rotation(streams.positions_t)
        columns = itertools.cycle(self._columns(streams, users_ur) or [None])
        for k, layer in enumerate(self.backbone.layers):
            last = k == len(self.backbone.layers) - 1
            if str(k) in self.da_layers:
                h_td = self._layer(layer, self.da_layers[str(k)], h_td, streams, rotation, last, next(columns))
            else:
                h_td = self._layer(layer, plain_layer, h_td, streams, rotation, last)
        return self.backbone.finish(h_td).index_select(0, streams.read_places_r)

    def scoring_head(self) -> nn.Linear:
        """The item projection: W_item [I, output] and b_item."""
        if self.text_head is None:
            return self.item_head
        head: nn.Linear = self.text_head(self.item_head)
        return head

    def _layer(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if self.execution.checkpoint_activations and torch.is_grad_enabled():
            return torch.as_tensor(checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False))
        return torch.as_tensor(layer(*inputs))

    def trained_state(self) -> dict[str, Tensor]:
        """The trained tensors by name: everything but the backbone."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("backbone.")}

    def _embed(self, streams: PackedStreams) -> Tensor:
        words_te = self.backbone.word_embeddings(streams.token_ids_t)
        special = self.special.index_select(0, streams.special_kinds).to(words_te.dtype)
        return words_te.index_copy(0, streams.special_rows, special)

    def user_vectors(self, users_u: Tensor, all_known: bool) -> Tensor | None:
        """[U, representation] CF vectors; a user who was not trained on (-1) gets the average user's."""
        if self.collaborative is None:
            return None
        table_ur = self.collaborative.users()
        users_ur = table_ur.index_select(0, users_u.clamp(min=0))
        if all_known:
            return users_ur
        return torch.where(users_u[:, None] < 0, table_ur.mean(0, keepdim=True), users_ur)

    def _columns(self, streams: PackedStreams, users_ur: Tensor | None) -> list[Tensor]:
        """[S, hidden] collaborative columns, one for all DALayers or one each."""
        if self.collaborative is None:
            return []
        if users_ur is None:
            users_ur = self.user_vectors(streams.users, streams.all_users_known)
        items_ir = self.collaborative.items().index_select(0, streams.items)
        return [column(users_ur, items_ir) for column in self.columns]
