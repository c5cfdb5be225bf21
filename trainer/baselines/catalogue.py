"""The items as a baseline may know them: their texts, nothing of who has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What a baseline may be made from.

    Args:
        sentences: [items] item sentences.
        attributes: texts of each attribute, [items], by its name.
        digest: SHA-256 of all that, the key of what is cached.
        cache: root of `trainer.cache.cached`, a folder or a URL.
    """

    sentences: Sequence[str]
    attributes: Mapping[str, Sequence[str]]
    digest: str
    cache: Path | str

    @classmethod
    def of(cls, dataset: Dataset, cache: Path | str) -> Catalogue:
        """All items of a (sub)set's dataset."""
        return cls(dataset.sentences, dataset.attributes, dataset.manifest.digests["items"], cache)

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.sentences)
