import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.ragged import Ragged, save_parts

rows_of_integers = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=6)


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in ragged]


@given(rows_of_integers)
def test_rows_come_back_as_they_went_in(rows):
    ragged = Ragged.from_rows(rows)
    assert as_lists(ragged) == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged.row_of_value.tolist() == [index for index, row in enumerate(rows) for _ in row]
    assert ragged.values.dtype == np.int32
    assert ragged.offsets.dtype == np.int64


@settings(max_examples=40)
@given(parts=st.lists(rows_of_integers, max_size=4))
def test_save_and_load(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("ragged") / "rows.parquet"
    save_parts(path, map(Ragged.from_rows, parts))
    loaded = Ragged.load(path)
    assert as_lists(loaded) == [row for rows in parts for row in rows]
    loaded.save(path)
    assert as_lists(Ragged.load(path)) == as_lists(loaded)


@given(st.lists(rows_of_integers, max_size=4))
def test_join_puts_parts_one_after_the_other(parts):
    assert as_lists(Ragged.join(map(Ragged.from_rows, parts))) == [row for rows in parts for row in rows]


@given(rows_of_integers.filter(bool), st.data())
def test_take_picks_rows_in_the_order_asked(rows, data):
    picks = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = Ragged.from_rows(rows).take(np.array(picks, np.int64))
    assert as_lists(taken) == [rows[pick] for pick in picks]


@given(rows_of_integers)
def test_append_puts_one_value_at_each_end(rows):
    column = np.arange(len(rows), dtype=np.int32)
    assert as_lists(Ragged.from_rows(rows).append(column)) == [
        [*row, end] for row, end in zip(rows, column, strict=True)
    ]


@given(rows_of_integers, st.integers(1, 6))
def test_newest_keeps_the_end_of_every_row(rows, count):
    assert as_lists(Ragged.from_rows(rows).newest(count)) == [row[-count:] for row in rows]


def test_a_row_outside_is_an_error():
    ragged = Ragged.from_rows([[1], [2, 3]])
    assert ragged[-1].tolist() == [2, 3]
    with pytest.raises(IndexError):
        ragged[2]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), max_size=6))
def test_shifted_pairs_every_value_with_the_next(rows):
    inputs, following = Ragged.from_rows(rows).shifted()
    assert as_lists(inputs) == [row[:-1] for row in rows]
    assert following.tolist() == [value for row in rows for value in row[1:]]
