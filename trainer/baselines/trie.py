"""All items' names as a tree of tokens, and a beam search that can end in items alone.

Notation: N nodes, C children of a node at most, n histories, K beams, S tokens of a name at most, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_NONE = -1


class Trie(nn.Module):
    """A tree of the names; no name may begin another one.

    Args:
        names: tokens of each item's name, [I].

    Raises:
        ValueError: if a name is that of another item, or begins it.
    """

    tokens_nc: Tensor
    nodes_nc: Tensor
    item_n: Tensor

    def __init__(self, names: Sequence[Sequence[int]]) -> None:
        super().__init__()
        children: list[dict[int, int]] = [{}]
        items: dict[int, int] = {}
        for item, name in enumerate(names):
            node = 0
            for token in name:
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
            if items.setdefault(node, item) != item:
                raise ValueError(f"items {items[node]} and {item} have the same name")
        if any(children[node] for node in items):
            raise ValueError("a name begins another one")
        self.depth = max(map(len, names))
        most = max(map(len, children))
        tokens = [_filled(list(below), most) for below in children]
        nodes = [_filled(list(below.values()), most) for below in children]
        found = [items.get(node, _NONE) for node in range(len(children))]
        for name_of_buffer, values in (("tokens_nc", tokens), ("nodes_nc", nodes), ("item_n", found)):
            self.register_buffer(name_of_buffer, torch.tensor(values), persistent=False)

    def search(self, likelihoods: Callable[[Tensor], Tensor], histories: int, beams: int) -> tuple[Tensor, Tensor]:
        """The best items by log p(name), found by a beam of prefixes.

        Args:
            likelihoods: log p of every token [n · K, V] after prefixes [n · K, length], those of a history together.
            histories: n.
            beams: K at most.

        Returns:
            Items and their log-likelihoods, both [n, K], best first; item -1 where a beam came to nothing.
        """
        device = self.item_n.device
        nodes = torch.zeros(histories, 1, dtype=torch.int64, device=device)
        scores = torch.zeros(histories, 1, device=device)
        prefixes = torch.empty(histories, 1, 0, dtype=torch.int64, device=device)
        for _ in range(self.depth):
            found = likelihoods(prefixes.flatten(0, 1)).unflatten(0, nodes.shape)
            tokens, below = self.tokens_nc[nodes], self.nodes_nc[nodes]
            steps = found.gather(2, tokens.clamp(min=0)).masked_fill(below == _NONE, -torch.inf)
            whole = self.item_n[nodes] != _NONE  # stays as it is while longer names grow
            steps[..., 0] = torch.where(whole, 0.0, steps[..., 0])
            below = torch.where(whole[..., None], nodes[..., None], below)
            totals = (scores[..., None] + steps).flatten(1)
            scores, places = totals.topk(min(beams, totals.shape[1]), dim=1)
            parents = places // tokens.shape[2]
            nodes = below.flatten(1).gather(1, places)
            chosen = tokens.clamp(min=0).flatten(1).gather(1, places)
            kept = prefixes.gather(1, parents[..., None].expand(-1, -1, prefixes.shape[2]))
            prefixes = torch.cat([kept, chosen[..., None]], 2)
        return self.item_n[nodes].masked_fill(scores == -torch.inf, _NONE), scores


def _filled(values: list[int], length: int) -> list[int]:
    return [*values, *[_NONE] * (length - len(values))]
