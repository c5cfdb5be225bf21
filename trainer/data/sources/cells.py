"""Whole columns of cells as texts and numbers: what `as_text` and `as_time` make of one cell, many at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.ragged import integers
from trainer.data.sources.blocks import Column
from trainer.data.sources.files import as_rating, as_text, as_time

# What Arrow and Python read alike; anything else is left to Python.
_WHOLE = r"^-?[0-9]{1,18}$"
_DECIMAL = r"^-?[0-9]{1,18}(\.[0-9]{0,18})?$"


def texts(column: Column) -> pa.Array:
    """`as_text` of every cell, large strings."""
    if isinstance(column, pa.Array):
        if _is_text(column.type):
            return pc.utf8_trim_whitespace(column.cast(pa.large_string()).fill_null(""))
        if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
            return column.cast(pa.large_string()).fill_null("")
        column = column.to_pylist()
    return pa.array(list(map(as_text, column)), pa.large_string())


def times(column: Column) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """`as_time` of every cell: int64 if all are whole and fit, else float64; and which are no time.

    Where one is no time the values mean nothing.
    """
    fast = _numbers(column)
    if fast is not None:
        return fast, ~np.isfinite(fast)
    values = [as_time(value) for value in (column.to_pylist() if isinstance(column, pa.Array) else column)]
    bad = np.array([value is None for value in values], bool)
    if bad.any():
        return np.zeros(len(values)), bad
    try:
        whole = all(isinstance(value, int) for value in values)
        return np.array(values, np.int64 if whole else np.float64), bad
    except OverflowError:
        return np.array(values, np.float64), bad


def ratings(column: Column) -> NDArray[np.float32]:
    """`as_rating` of every cell."""
    fast = _numbers(column)
    if fast is not None:
        return fast.astype(np.float32)
    cells = column.to_pylist() if isinstance(column, pa.Array) else column
    return np.array([as_rating(cell) for cell in cells], np.float32)


def flags(mask: pa.Array) -> NDArray[np.bool_]:
    """Booleans without nulls."""
    return integers(mask.cast(pa.uint8())).astype(bool)


def take(column: Column, rows: NDArray[np.int64]) -> Column:
    """The cells of these rows, which rise."""
    if len(rows) == len(column):
        return column
    return column.take(pa.array(rows)) if isinstance(column, pa.Array) else [column[row] for row in rows]


def _numbers(column: Column) -> NDArray[Any] | None:
    """A column without missing cells as int64 or float64 by Arrow, None where Python must read it."""
    if not isinstance(column, pa.Array) or column.null_count:
        return None
    kind = column.type
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return integers(column.cast(pa.int64()))
    if kind in (pa.float32(), pa.float64()):
        return integers(column.cast(pa.float64()))
    if _is_text(kind):
        for pattern, target in ((_WHOLE, pa.int64()), (_DECIMAL, pa.float64())):
            if pc.all(pc.match_substring_regex(column, pattern), min_count=0).as_py():
                return integers(column.cast(target))
    return None


def _is_text(kind: pa.DataType) -> bool:
    checks: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
    )
    return any(check(kind) for check in checks)
