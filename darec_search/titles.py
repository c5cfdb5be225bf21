"""Items by id or by title, as people write them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from trainer.errors import BadInput

_NEAREST = 3
_COMPARED = 50
"""Titles that share the most letter groups with a wrong one, which are compared in full."""


class Items:
    """Looks items up: first by id, then by their exact title, then by the title without case, accents, punctuation.

    Args:
        ids: id of every item.
        titles: title of every item, in the same order.

    Attributes:
        places: place of every id in that order.
    """

    def __init__(self, ids: Sequence[str], titles: Sequence[str]) -> None:
        self._ids, self._titles = ids, titles
        self.places = {item: place for place, item in enumerate(ids)}
        self._by_title: dict[str, list[int]] | None = None
        self._by_folded: dict[str, list[int]] = {}

    def id_of(self, name: str) -> str:
        """The id of the item that a name means.

        Raises:
            BadInput: if no item or more than one is called so.
        """
        if name in self.places:
            return name
        if self._by_title is None:
            self._by_title = _places(self._titles)
            self._by_folded = _places([folded(title) for title in self._titles])
        found = self._by_title.get(name) or self._by_folded.get(folded(name), [])
        if len(found) == 1:
            return self._ids[found[0]]
        if found:
            ids = ", ".join(self._ids[place] for place in found[:5]) + (", …" if len(found) > 5 else "")
            raise BadInput(f"{name!r}: {len(found)} items are called so (ids {ids}); name one by its id")
        nearest = "; ".join(f"{self._titles[place]!r} (id {self._ids[place]})" for place in self.nearest(name))
        raise BadInput(f"{name!r}: is unknown to this model, as an id and as a title; nearest: {nearest}")

    def nearest(self, name: str, count: int = _NEAREST) -> list[int]:
        """Places of the items whose titles are the most like a name, best first."""
        wanted = _groups(folded(name))
        shared = Counter({place: len(wanted & _groups(folded(title))) for place, title in enumerate(self._titles)})
        compared = [place for place, _ in shared.most_common(_COMPARED)]
        alike = {
            place: difflib.SequenceMatcher(None, folded(name), folded(self._titles[place])).ratio()
            for place in compared
        }
        return sorted(compared, key=lambda place: -alike[place])[:count]


def folded(title: str) -> str:
    """A title without case, accents, punctuation and runs of spaces."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", title) if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[\W_]+", " ", plain.casefold()).split())


def _places(titles: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for place, title in enumerate(titles):
        if title:
            places[title].append(place)
    return dict(places)


def _groups(text: str) -> set[str]:
    """Groups of three letters."""
    return {text[start : start + 3] for start in range(max(len(text) - 2, 1))}
