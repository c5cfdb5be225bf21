"""Reading by blocks against reading row by row."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sources.cells import texts
from trainer.data.sources.files import TableFile, as_text, as_time
from trainer.data.sources.interactions import InteractionColumns, Vocabulary, read_interactions
from trainer.errors import BadInput

ITEMS = ["a", "b", "7", "ö"]
USERS = ["u", "v", " u ", "7", "7.0", "ü", "u\u00a0", "x y", '"u"', '"u,v"', '"u\nv"']
ROW_ITEMS = [*ITEMS, " b", "7.0"]
TIMES = ["5", "6", "7", "-3", "1.5", "2.", "1e3", " 8", "+9", "1_0", "007", "9" * 18, "9" * 20, "9007199254740993"]
WRONG = [("", "a", "1"), ("u", "", "1"), ("u", "zz", "1"), ("u", "zz", "noon"), ("u", "a", "nan"), ("u", "a", "0x1A")]
ODD_LINES = ["", "u", "u,a,1,2", '"u', "u\0,a,1"]

cells = st.tuples(st.sampled_from(USERS), st.sampled_from(ROW_ITEMS), st.sampled_from(TIMES))
plain_cells = st.tuples(st.sampled_from(USERS[:8]), st.sampled_from(ITEMS), st.sampled_from(TIMES[:4]))
rows = st.one_of(*(st.lists(kind, max_size=12) for kind in (plain_cells, plain_cells, cells)))


def by_row(file: TableFile, columns: list[str], refuse: bool):
    """One row after the other, in Python: (user ids, users, items, times, dropped), or what is wrong."""
    user_index: dict[str, int] = {}
    users, items, times, dropped = [], [], [], 0
    for number, row in file.rows(columns):
        user, item, where = as_text(row[0]), as_text(row[1]), file.where(number)
        if not user or not item:
            raise BadInput(f"{where}: is empty in column {columns[0 if not user else 1]!r}; fill it or remove the row")
        if item not in ITEMS:
            if refuse:
                raise BadInput(
                    f"{where}: item {item!r} is not in the items file; add it there, remove the row, or set "
                    "unknown_items=drop"
                )
            dropped += 1
            continue
        time = as_time(row[2]) if len(columns) == 3 else number
        if time is None:
            raise BadInput(
                f"{where}: {row[2]!r} in column {columns[2]!r} is no number; times are numbers that rise, such as Unix "
                "seconds"
            )
        users.append(user_index.setdefault(user, len(user_index)))
        items.append(ITEMS.index(item))
        times.append(time)
    whole = all(isinstance(time, int) and abs(time) < 2**63 for time in times)
    return list(user_index), users, items, np.array(times, np.int64 if whole else np.float64).tolist(), dropped


def outcome(read):
    try:
        return read()
    except BadInput as error:
        return str(error)


def assert_read_alike(path, size, refuse, timed=True):
    file = TableFile(path)
    expected = outcome(lambda: by_row(file, ["user", "item", "time"][: 2 + timed], refuse))

    def by_blocks():
        columns = InteractionColumns("user", "item", "time" if timed else None)
        found = read_interactions(file, columns, ITEMS, refuse_unknown=refuse)
        return (
            list(found.user_ids),
            *(part.tolist() for part in (found.users, found.items, found.times)),
            found.dropped,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.data.sources.interactions._ROWS_PER_BLOCK", size)
        assert outcome(by_blocks) == expected


@settings(max_examples=150, deadline=None)
@given(rows, st.data(), st.sampled_from(["csv", "tsv"]), st.integers(1, 6), st.booleans(), st.booleans(), st.booleans())
def test_lines(tmp_path_factory, table, data, kind, size, refuse, timed, end):
    lines = [",".join(row) for row in table]
    for odd in data.draw(st.lists(st.sampled_from([*ODD_LINES, *map(",".join, WRONG)]), max_size=1)):
        lines.insert(data.draw(st.integers(0, len(lines))), odd)
    newline = data.draw(st.sampled_from(["\n", "\r\n"]))
    text = newline.join(["user,item,time", *lines]) + (newline if end else "")
    path = tmp_path_factory.mktemp("lines") / f"log.{kind}"
    path.write_text(text if kind == "csv" else text.replace(",", "\t"), encoding="utf-8", newline="")
    assert_read_alike(path, size, refuse, timed)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(plain_cells, cells, st.sampled_from(WRONG)), max_size=12), st.integers(1, 6), st.booleans())
def test_jsonl(tmp_path_factory, table, size, refuse):
    path = tmp_path_factory.mktemp("jsonl") / "log.jsonl"
    first = {"user": "u", "item": "a", "time": 1}
    lines = [json.dumps(dict(zip(first, row, strict=True))) for row in table]
    path.write_text("\n".join([json.dumps(first), *lines]))
    assert_read_alike(path, size, refuse)


texts_or_none = st.one_of(st.sampled_from([*USERS, *ITEMS]), st.none())
COLUMNS = {
    pa.string(): texts_or_none,
    pa.dictionary(pa.int32(), pa.string()): texts_or_none,
    pa.int16(): st.integers(7, 9),
    pa.uint64(): st.sampled_from([7, 8, 2**64 - 1]),
    pa.float64(): st.sampled_from([7.0, 8.0, 7.5, float("nan"), None]),
    pa.bool_(): st.booleans(),
    pa.timestamp("ms"): st.one_of(st.integers(0, 9), st.none()),
    pa.null(): st.none(),
}
kinds = st.sampled_from(list(COLUMNS))


@settings(max_examples=150, deadline=None)
@given(st.tuples(kinds, kinds, kinds), st.integers(0, 9), st.data(), st.integers(1, 4), st.booleans())
def test_parquet_of_any_types(tmp_path_factory, types, length, data, size, refuse):
    columns = [data.draw(st.lists(COLUMNS[kind], min_size=length, max_size=length)) for kind in types]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
    path = tmp_path_factory.mktemp("parquet") / "log.parquet"
    pq.write_table(pa.table(arrays, ["user", "item", "time"]), path)
    assert_read_alike(path, size, refuse)


def test_white_space_is_what_python_takes_for_it():
    letters = [f"{chr(code)}x{chr(code)}" for code in range(0x11000) if not 0xD800 <= code < 0xE000]
    assert texts(pa.array(letters)).to_pylist() == [as_text(letter) for letter in letters]


def test_a_vocabulary_numbers_texts_as_they_come():
    vocabulary = Vocabulary(["b"])
    assert vocabulary.add(pa.array(["c", "b", "c", "a"], pa.large_string())).tolist() == [1, 0, 1, 2]
    assert vocabulary.add(pa.array(["d", "a"], pa.large_string())).tolist() == [3, 2]
    assert vocabulary.find(pa.array(["x", "d"], pa.large_string())).tolist() == [-1, 3]
    assert list(vocabulary.texts) == list("bcad")
