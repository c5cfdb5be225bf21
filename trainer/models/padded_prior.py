"""The prior from counts as one function of padded tensors: what ONNX can hold of it.

Legend: B histories, N items of the longest, I items, P partners of an item at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import RELATIONS
from trainer.models.prior import WEIGHTS, Prior

NOTHING = 1e-6
"""Sums up to this are taken for nothing, before popular items are scaled down."""


@dataclass(frozen=True)
class Partners:
    """The relations of the items, a row each; a last row, and a last item, stand for the filling."""

    ids: Mapping[str, Tensor]
    """[I + 1, P] partners by relation, filled with I."""
    values: Mapping[str, Tensor]
    """[I + 1, P] how strong each is, filled with 0."""
    scales: Mapping[str, Tensor]
    """[I] by what sums over a history are multiplied."""
    decay: float
    """Weight of an item of a history against the one after it."""


class PaddedPrior(nn.Module):
    """Logits of all items from the counts as they are (`PriorCounter.of_histories`).

    Args:
        prior: the trained weights; they are shared.
        partners: of the catalogue's items.
    """

    def __init__(self, prior: Prior, partners: Partners) -> None:
        super().__init__()
        self.prior, self._decay = prior, partners.decay
        self._relations = [name for name in RELATIONS if name in prior.sources]
        for name in self._relations:
            self.register_buffer(f"{name}_ids", partners.ids[name])
            self.register_buffer(f"{name}_values", partners.values[name])
            self.register_buffer(f"{name}_scales", partners.scales[name])

    def forward(self, filled: Tensor) -> Tensor:
        """Logits [B, I].

        Args:
            filled: [B, N] item numbers, oldest first, filled with I on the left; at least one item each.
        """
        prior, n_items = self.prior, len(self.prior.log_frequency_i)
        nothing = torch.zeros(filled.shape[0], n_items + 1, device=filled.device)
        seen = nothing.scatter(1, filled, 1.0)[:, :-1]
        ages = filled.shape[1] - 1 - torch.arange(filled.shape[1], device=filled.device)
        fading = torch.pow(torch.full_like(ages, self._decay, dtype=torch.float32), ages)
        logits = torch.zeros_like(seen)
        for name in self._relations:
            ids, values, scales = (self.get_buffer(f"{name}_{part}") for part in ("ids", "values", "scales"))
            weighted = values[filled] * fading[:, None]
            sums = nothing.scatter_add(1, ids[filled].flatten(1), weighted.flatten(1))[:, :-1]
            sums = torch.where((sums > NOTHING) & (seen == 0), sums, 0.0) * scales
            sharpness = prior.log_sharpness[RELATIONS.index(name)].exp()
            logits = logits + self._weight(name) * (sharpness * sums).log1p()
        if "popularity" in prior.sources:
            logits = logits + self._weight("popularity") * prior.log_frequency_i
        if "seen" in prior.sources:
            latest = torch.zeros_like(seen).scatter(1, filled[:, -1:], 1.0)
            logits = logits + self._weight("seen") * seen + self._weight("latest") * latest
        return logits

    def _weight(self, name: str) -> Tensor:
        return self.prior.weights[WEIGHTS.index(name)]
