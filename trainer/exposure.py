"""What the top lists show of the catalogue, beside how well they rank.

Legend: n users, L_k(u) the k best items of user u, φ(i) interactions with item i in the training part.

coverage@k         |∪_u L_k(u)| / items: the share of the catalogue that is shown to anybody (Ge et al., RecSys 2010)
arp@k              mean over u of the mean φ in L_k(u): average recommendation popularity (Yin et al., VLDB 2012;
                   Abdollahpouri et al., FLAIRS 2019)
popularity_lift@k  arp@k / GAP − 1, GAP the same mean over the users' histories: above 0 the lists are more popular than
                   what their users chose (Abdollahpouri et al., RMSE workshop 2019, who call it ΔGAP)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.ragged import Ragged


def exposure(
    top_items: NDArray[np.integer], frequencies: NDArray[np.integer], histories: Ragged, cutoffs: Sequence[int]
) -> dict[str, float]:
    """The three measures at each cutoff.

    Args:
        top_items: [n, longest cutoff] best items of each user, best first; shorter where there are fewer items.
        frequencies: [items] φ.
        histories: the users' items before the target, at least one each.
        cutoffs: each k.
    """
    sums = np.add.reduceat(frequencies[histories.values], histories.offsets[:-1])
    history_popularity = float((sums / histories.lengths).mean())
    found: dict[str, float] = {}
    for k in cutoffs:
        shown = top_items[:, :k]
        popularity = float(frequencies[shown].mean())
        found[f"coverage@{k}"] = len(np.unique(shown)) / len(frequencies)
        found[f"arp@{k}"] = popularity
        found[f"popularity_lift@{k}"] = popularity / history_popularity - 1
    return found
