"""What every source format hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import Section

OWN_SPLIT = (
    "The source brings a split: a user's last interaction is its test item, the one before its validation item. Joined "
    "to whole histories, leave-one-out gives that split again for every user of whom no filter takes an interaction."
)
"""The rule of a source whose parts are joined before they are split."""


@dataclass(frozen=True, eq=False)
class RawData:
    """Interactions as the source has them, before any filter.

    Args:
        item_ids: [items], each once.
        attributes: attribute name → [items] texts ("" where unknown); `title` is always there.
        user_ids: [users] in the order of their first interaction.
        users: [interactions] user indices, in file order.
        items: [interactions] item indices.
        times: [interactions] integers or floats that rise with time within a user.
        dated: whether `times` are the source's own; False where they only count the rows.
        ratings: [interactions], NaN where a row has none; None for a source without ratings.
        source_files: file name → SHA-256 of its bytes.
        rules: what reading did, one sentence each.
        warnings: what a reader should know, one sentence each.
    """

    item_ids: Sequence[str]
    attributes: Mapping[str, Sequence[str]]
    user_ids: Sequence[str]
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[Any]
    dated: bool = True
    ratings: NDArray[np.float32] | None = None
    source_files: dict[str, str] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A source format.

    Args:
        options: its options; their descriptions are the reference documentation.
        read: from the path that the user named, if any, and the options; raises BadInput.
    """

    options: type[Section]
    read: Callable[[Path | None, Any], RawData]
