"""Items of an export that tests may name by their titles."""

from __future__ import annotations

from collections import Counter

from darec_search.recommender import Recommender
from darec_search.titles import folded


def with_titles_of_their_own(recommender: Recommender) -> list[str]:
    """Ids of the items whose title no other item has."""
    ids = recommender.item_ids
    titles = [folded(title) for title in recommender.titles(ids)]
    counts = Counter(titles)
    return [item for item, title in zip(ids, titles, strict=True) if counts[title] == 1]
