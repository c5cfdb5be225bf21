"""A prior from counts: logits of all items from what the training part says about a history.

logit(j | h) = Σ_s w_s log(1 + κ_s x_s(j | h)) + w_popularity log(1 + n_j) + w_seen [j in h] + w_latest [j latest of h]

over the relations s that are switched on; x and n as in `trainer.counting`. Trained are w and κ. The logarithm makes
a logit of a count: twice as many pairs are about twice as likely.

Legend: R rows (histories), I items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import RELATIONS, PriorConfig

Ints = NDArray[np.int64]

WEIGHTS = (*RELATIONS, "popularity", "seen", "latest")
_FIRST_WEIGHTS = (1.0, 1.0, 1.0, 0.8, 0.0, 0.0)
_FIRST_SHARPNESS = 20.0


@dataclass(frozen=True)
class Entries:
    """The entries of a sparse [rows, items] matrix that are there, row by row."""

    places: Tensor
    """[n] row × items + item."""
    values: Tensor
    """[n] float32."""
    starts: Ints
    """[rows + 1] where each row starts; on the host."""

    def to(self, device: str) -> Entries:
        """The same on another device."""
        places, values = (part.to(device, non_blocking=True) for part in (self.places, self.values))
        return Entries(places, values, self.starts)


@dataclass(frozen=True)
class PriorInput:
    """What is counted for some histories, a row each."""

    together: Entries
    next: Entries
    text: Entries
    popularity: Entries
    """log(1 + n_j without the user) - log(1 + n_j), where the user has j."""
    seen: Entries
    """1 for every item of the history."""
    latest: Entries
    """1 for the latest one."""

    def __len__(self) -> int:
        return len(self.latest.starts) - 1

    def to(self, device: str) -> PriorInput:
        """The same on another device."""
        return PriorInput(**{name: entries.to(device) for name, entries in vars(self).items()})


class Prior(nn.Module):
    """The logits.

    Args:
        config: what is counted.
        frequency: [I] interactions with each item in the training part.
    """

    log_frequency_i: Tensor

    def __init__(self, config: PriorConfig, frequency: NDArray[np.int64]) -> None:
        super().__init__()
        self.sources = [name for name in WEIGHTS if {"latest": "seen"}.get(name, name) in config.sources]
        self.weights = nn.Parameter(torch.tensor(_FIRST_WEIGHTS))
        """[6] w in the order of `WEIGHTS`; those of sources that are switched off stay as they are."""
        self.log_sharpness = nn.Parameter(torch.full((len(RELATIONS),), math.log(_FIRST_SHARPNESS)))
        """[3] log κ in the order of `RELATIONS`."""
        log_frequency = torch.from_numpy(np.log1p(frequency).astype(np.float32))
        self.register_buffer("log_frequency_i", log_frequency, persistent=False)

    def forward(self, given: PriorInput, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits of rows start … stop - 1, [R, I] float32.

        Args:
            given: the histories; its tensors on the device of this module.
            start: first row.
            stop: row after the last one; all rows when absent.
        """
        stop, n_items = len(given) if stop is None else stop, len(self.log_frequency_i)
        base_i = torch.zeros_like(self.log_frequency_i)
        if "popularity" in self.sources:
            base_i = self.weights[WEIGHTS.index("popularity")] * self.log_frequency_i
        places, values = [], []
        for name in self.sources:
            entries: Entries = getattr(given, name)
            chosen = slice(int(entries.starts[start]), int(entries.starts[stop]))
            places.append(entries.places[chosen] - start * n_items)
            values.append(self._logits(name, entries.values[chosen]))
        logits = base_i.expand(stop - start, n_items).reshape(-1)
        return logits.index_add(0, torch.cat(places), torch.cat(values)).view(-1, n_items)

    def _logits(self, name: str, values_n: Tensor) -> Tensor:
        if name in RELATIONS:
            values_n = (self.log_sharpness[RELATIONS.index(name)].exp() * values_n).log1p()
        return self.weights[WEIGHTS.index(name)] * values_n
