"""Scores, ranks and top lists from hidden states and the item head, by blocks of items.

Whatever the model computes in, the head's product is float32: bfloat16 logits have eight bits, and a large part of a
catalogue would tie. Scores are held for one block of users and items at a time, so a catalogue of a million items can
be ranked.

Legend: n users, B items of a block, k items of a top list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from trainer.data.ragged import Ragged
from trainer.metrics import RunningRanks

PriorScores = Callable[[NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class Ranked:
    """Users whose target was ranked."""

    ranks: Tensor
    """[n] float64 rank of each target."""
    top_items: Tensor
    """[n, k] indices of the best items, best first; among equal scores any may come first."""
    log_likelihoods: Tensor | None = None
    """[n] float64 log p(target), the softmax over all items, where it was asked for."""


def seen_before(histories: Ragged, targets_n: NDArray[np.integer]) -> Ragged:
    """What a ranking with `exclude_seen` leaves out: each history, but for a target that the user already had."""
    rows = histories.row_of_value
    stays = histories.values != targets_n[rows]
    return Ragged.from_lengths(histories.values[stays], np.bincount(rows[stays], minlength=len(histories)))


def leave_out(scores_nb: Tensor, seen: Ragged, first: int = 0) -> Tensor:
    """Put items below all others, in place.

    Args:
        scores_nb: scores of a block of items.
        seen: [n] rows of item indices.
        first: index of the block's first item.
    """
    items = seen.values - first
    inside = (items >= 0) & (items < scores_nb.shape[1])
    rows, items = seen.row_of_value[inside], items[inside].astype(np.int64)
    scores_nb[torch.from_numpy(rows).to(scores_nb.device), torch.from_numpy(items).to(scores_nb.device)] = -torch.inf
    return scores_nb


class RunningTop:
    """The k best items of each user from scores that come block by block.

    Args:
        k: length of the lists; there are fewer entries while fewer items were seen.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._blocks: tuple[Tensor, Tensor] | None = None

    def add(self, scores_nb: Tensor, first: int) -> None:
        """Take in a block whose first item has the index `first`."""
        # Asked for nothing, torch would still read every score.
        scores_nb = scores_nb if self._k else scores_nb[:, :0]
        scores, items = scores_nb.topk(min(self._k, scores_nb.shape[1]), dim=1)
        items = items + first
        if self._blocks is not None:
            scores, items = (torch.cat(pair, 1) for pair in zip(self._blocks, (scores, items), strict=True))
            scores, places = scores.topk(min(self._k, scores.shape[1]), dim=1)
            items = items.gather(1, places)
        self._blocks = scores, items

    def lists(self) -> tuple[Tensor, Tensor]:
        """Scores and item indices, both [n, k], best first.

        Raises:
            ValueError: if there was no block.
        """
        if self._blocks is None:
            raise ValueError("top lists need at least one block of scores")
        return self._blocks


class RunningLogLikelihood:
    """log p of each target under the softmax of scores that come block by block.

    Args:
        scores_nb: scores of the block that holds every target.
        targets_n: places of the targets within that block.
    """

    def __init__(self, scores_nb: Tensor, targets_n: Tensor) -> None:
        self._target_scores = scores_nb.gather(1, targets_n.long().unsqueeze(1))[:, 0]
        self._normalizers = scores_nb.logsumexp(1)

    def add(self, scores_nb: Tensor) -> None:
        """Count another block."""
        self._normalizers = torch.logaddexp(self._normalizers, scores_nb.logsumexp(1))

    def values(self) -> Tensor:
        """[n] log-likelihoods over all that was counted, in float64."""
        return (self._target_scores - self._normalizers).double()


class ItemScorer:
    """The item head in blocks of items, and as many users at a time as keep the scores within a budget.

    Args:
        head: the item projection.
        held: scores that may be held at a time.
        block_items: items of a block at most; users whose targets share a block are scored together, so that many
            small blocks make small products.
        prior: scores of all items that some users, given by their places among the states, have beside those of the
            head, [users, items]; none when absent.
        seen: items of each user that are left out (`seen_before`); none when absent.

    Attributes:
        block_users: users that are scored together at most.
    """

    def __init__(
        self,
        head: nn.Linear,
        held: int,
        block_items: int = 65_536,
        prior: PriorScores | None = None,
        seen: Ragged | None = None,
    ) -> None:
        self._head, self._prior, self._seen = head, prior, seen
        self.block_items = min(head.out_features, block_items, held)
        # A prior has the scores of all items at once.
        self.block_users = max(held // (self.block_items if prior is None else head.out_features), 1)

    @classmethod
    def on(
        cls, head: nn.Linear, device: str, prior: PriorScores | None = None, seen: Ragged | None = None
    ) -> ItemScorer:
        """With the budget of a device: 16 MB stay in a CPU's cache, a GPU wants more to do at once (256 MB)."""
        return cls(head, 2**26 if device.startswith("cuda") else 2**22, prior=prior, seen=seen)

    @torch.no_grad()
    def all_scores(self, states_nd: Tensor) -> Tensor:
        """Scores of all items at once, [n, items]: for a few users."""
        return torch.cat(
            [
                torch.cat([scores for _, scores in self._blocks(states, places)], 1)
                for states, places in self._parts(states_nd)
            ]
        )

    @torch.no_grad()
    def best(self, states_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and indices of the k best items of each user, best first, both [n, k]; all if there are fewer."""
        parts = []
        for states, places in self._parts(states_nd):
            top = RunningTop(k)
            for first, scores in self._blocks(states, places):
                top.add(scores, first)
            parts.append(top.lists())
        scores, items = (torch.cat(part) for part in zip(*parts, strict=True))
        return scores, items

    @torch.no_grad()
    def rank(self, states_nd: Tensor, targets_n: NDArray[np.integer], k: int, *, likelihood: bool = False) -> Ranked:
        """Rank each user's target among all items, and list the k best; on request its log-likelihood too.

        A user's first block is the one that holds the target, so that the target's score is read where it is compared
        and ties are seen exactly.
        """
        homes = targets_n // self.block_items
        order = np.argsort(homes, kind="stable")
        order_n = torch.from_numpy(order).to(states_nd.device, non_blocking=True)
        targets = torch.from_numpy(targets_n[order].astype(np.int64)).to(states_nd.device, non_blocking=True)
        parts = [
            self._rank(states_nd.index_select(0, order_n[rows]), order[rows], targets[rows], home, k, likelihood)
            for rows in _runs(homes[order], self.block_users)
            for home in [int(homes[order[rows.start]])]
        ]
        back = torch.empty_like(order_n)
        back[order_n] = torch.arange(len(order), device=back.device)
        return Ranked(*(torch.cat(part).index_select(0, back) for part in zip(*parts, strict=True)))

    def _rank(
        self, states_nd: Tensor, places: NDArray[np.int64], targets_n: Tensor, home: int, k: int, likelihood: bool
    ) -> tuple[Tensor, ...]:
        blocks = self._blocks(states_nd, places, home)
        first, scores = next(blocks)
        running, top = RunningRanks(scores, targets_n - first), RunningTop(k)
        likely = RunningLogLikelihood(scores, targets_n - first) if likelihood else None
        top.add(scores, first)
        for first, scores in blocks:
            running.add(scores)
            top.add(scores, first)
            if likely is not None:
                likely.add(scores)
        return running.ranks(), top.lists()[1], *([] if likely is None else [likely.values()])

    def _parts(self, states_nd: Tensor) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """As many states as are scored together, and their places."""
        first = 0
        for states in states_nd.split(self.block_users):
            yield states, np.arange(first, first + len(states))
            first += len(states)

    def _blocks(self, states_nd: Tensor, places: NDArray[np.int64], home: int = 0) -> Iterator[tuple[int, Tensor]]:
        """First item and float32 scores [n, B] of every block, `home` before the others; `places` of the users, [n]."""
        states_nd = states_nd.float()
        prior = self._prior(places) if self._prior is not None and len(places) else None
        seen = None if self._seen is None else self._seen.take(places)
        starts = list(range(0, self._head.out_features, self.block_items))
        for first in (starts[home], *starts[:home], *starts[home + 1 :]):
            items = slice(first, first + self.block_items)
            with torch.autocast(states_nd.device.type, enabled=False):
                scores = linear(states_nd, self._head.weight[items].float(), self._head.bias[items].float())
                scores = scores if prior is None else scores.add_(prior[:, items])
            yield first, scores if seen is None else leave_out(scores, seen, first)


def _runs(values: NDArray[np.integer], longest: int) -> Iterator[slice]:
    """Runs of equal neighbours, cut to a longest length."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, stop in pairwise(edges):
        for first in range(start, stop, longest):
            yield slice(first, min(first + longest, stop))
