"""Items as tokens of keys and values, and histories as these one after the other (RecFormer's input)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainer.data.ragged import Ragged

TYPES = 4
"""Of tokens: [CLS], key, value, and padding's in the authors' code."""
_CLS, _KEY, _VALUE = 0, 1, 2


class ItemTexts:
    """Items as tokens of keys and values.

    Args:
        attributes: texts of each attribute, [items], by its name.
        tokenize: ids of some texts.
        first: the [CLS] token.
        padding: the padding token.
        most: attributes of an item that are read, the first ones.
        longest: tokens of an attribute at most, its name included.
    """

    def __init__(
        self,
        attributes: Mapping[str, Sequence[str]],
        tokenize: Callable[[list[str]], list[list[int]]],
        *,
        first: int,
        padding: int,
        most: int,
        longest: int,
    ) -> None:
        self._first, self.padding = first, padding
        kept = dict(list(attributes.items())[:most])
        keys = dict(zip(kept, tokenize(list(kept)), strict=True))
        values = {key: tokenize(list(texts)) for key, texts in kept.items()}
        tokens: list[list[int]] = []
        types: list[list[int]] = []
        for item in range(len(next(iter(values.values())))):
            parts = [(keys[key], rows[item]) for key, rows in values.items() if rows[item]]
            tokens.append([token for key, value in parts for token in [*key, *value][:longest]])
            kinds = ([_KEY] * len(key) + [_VALUE] * len(value) for key, value in parts)
            types.append([kind for row in kinds for kind in row[:longest]])
        self.tokens, self._types = Ragged.from_rows(tokens), Ragged.from_rows(types)

    def of(self, histories: Ragged, longest: int) -> tuple[Ragged, Ragged, Ragged]:
        """Tokens, types and item positions of histories, newest item first: [CLS] of position 0, then items from 1."""
        tokens, types = self.tokens.take(histories.values), self._types.take(histories.values)
        place = np.arange(len(histories.values)) - histories.offsets[histories.row_of_value] + 1
        sizes = np.add.reduceat(np.append(tokens.lengths, 0), histories.offsets[:-1])
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        columns = (
            (tokens.values, self._first), (types.values, _CLS), (np.repeat(place, tokens.lengths), 0),
        )  # fmt: skip
        rows = (Ragged.from_lengths(np.insert(values, starts, first), sizes + 1) for values, first in columns)
        kept = np.arange(len(tokens.values) + len(starts)) - np.repeat(starts + np.arange(len(starts)), sizes + 1)
        lengths = np.minimum(sizes + 1, longest)
        found = [Ragged.from_lengths(row.values[kept < longest], lengths) for row in rows]
        return found[0], found[1], found[2]
