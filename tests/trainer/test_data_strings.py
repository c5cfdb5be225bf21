import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.dataset import digest_strings
from trainer.data.strings import Strings

many = st.lists(st.text(max_size=5), max_size=8)


@given(many)
def test_strings_are_a_sequence(texts):
    strings = Strings(texts)
    assert strings == texts
    assert list(strings) == texts
    assert [strings[index] for index in range(-len(texts), len(texts))] == texts * 2
    assert strings[1:3] == Strings(texts[1:3])
    assert strings != [*texts, "x"]
    assert pa.array(strings).to_pylist() == texts
    assert Strings(pa.chunked_array([texts[:2], texts[2:]], pa.string())) == strings


@given(many.filter(bool), st.data())
def test_take(texts, data):
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=5))
    assert Strings(texts).take(np.array(rows, np.int64)) == [texts[row] for row in rows]


def test_a_digest_is_of_the_texts_whatever_holds_them(monkeypatch):
    texts = ["a", 'b"\\', "ü\n", ""]
    expected = digest_strings(texts)
    monkeypatch.setattr("trainer.data.dataset._DIGEST_CHUNK", 3)
    assert digest_strings(texts) == digest_strings(Strings(texts)) == expected
    assert digest_strings([]) == digest_strings(Strings([])) != digest_strings([""])
