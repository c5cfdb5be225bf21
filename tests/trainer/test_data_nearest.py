import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from trainer.data.nearest import ExactSearch, IndexSearch
from trainer.errors import BadInput

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def as_lists(found):
    return [row[row >= 0].tolist() for row in found]


def literal(vectors, items, count, forbidden):
    """One item after the other by NumPy; equal within the resolution is equal, and then the lower index is first."""
    squares = (vectors**2).sum(1)
    resolution = (squares.max() or 1.0) * np.sqrt(2) * 1e-9
    found = []
    for row, item in enumerate(items):
        steps = np.rint((squares - 2 * vectors[item] @ vectors.T) / resolution)
        free = [other for other in range(len(vectors)) if other != item and not forbidden[row, other]]
        found.append(sorted(free, key=lambda other: (steps[other], other))[:count])
    return found


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 20), st.integers(0, 2**16), st.booleans())
def test_tiles_find_what_all_distances_say(device, n, count, width, seed, whole):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, 3, (n, 3)).astype(np.float64) if whole else rng.normal(size=(n, 3))
    items = rng.permutation(n)[: rng.integers(1, n + 1)]
    forbidden = rng.random((len(items), n)) < 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.data.nearest._TILE_BYTES", width * 32 * 1024)
        search = ExactSearch(vectors, count, device)
        count = min(count, n - 1)
        assert as_lists(search.find(items)) == literal(vectors, items, count, np.zeros_like(forbidden))
        found = search.find(items, sparse.csr_matrix(forbidden))
        assert as_lists(found) == literal(vectors, items, count, forbidden)


def test_rounding_chooses_nothing():
    """Whole-number vectors, so that most distances tie with others."""
    rng = np.random.default_rng(0)
    vectors, items = rng.integers(0, 2, (300, 12)).astype(np.float64), np.arange(300)
    noise = rng.normal(size=vectors.shape) * 1e-13
    np.testing.assert_array_equal(ExactSearch(vectors, 9).find(items), ExactSearch(vectors + noise, 9).find(items))


def test_an_index_finds_nearly_all():
    pytest.importorskip("faiss", reason="the extra `ann` is not installed")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(400, 32))
    vectors = (centres[rng.integers(0, 400, 20_000)] + 0.5 * rng.normal(size=(20_000, 32))).astype(np.float32)
    items = rng.permutation(20_000)[:500]
    exact, found = ExactSearch(vectors, 100).find(items), IndexSearch(vectors, 100).find(items)
    assert (found >= 0).all()
    assert not (found == items[:, None]).any()
    assert np.mean([len(np.intersect1d(a, b)) / 100 for a, b in zip(exact, found, strict=True)]) > 0.9


def test_an_index_passes_over_what_is_forbidden():
    pytest.importorskip("faiss", reason="the extra `ann` is not installed")
    vectors = np.arange(12, dtype=np.float32)[:, None]
    forbidden = sparse.csr_matrix((np.ones(3), ([0, 0, 1], [4, 6, 0])), shape=(2, 12))
    assert as_lists(IndexSearch(vectors, 2).find(np.array([5, 1]), forbidden)) == [[3, 7], [2, 3]]
    assert as_lists(IndexSearch(vectors[:2], 9).find(np.array([0, 1]))) == [[1], [0]]


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(BadInput, match=r"pip install 'darec-search\[ann\]'"):
        IndexSearch(np.eye(3), 1)
