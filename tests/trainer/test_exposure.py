import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.ragged import Ragged
from trainer.exposure import exposure


def test_by_hand():
    """Four items of frequency 8, 4, 2, 0; two users."""
    frequencies = np.array([8, 4, 2, 0])
    histories = Ragged.from_rows([[1, 2], [2]])  # mean popularities 3 and 2: 2.5
    found = exposure(np.array([[0, 1], [0, 3]]), frequencies, histories, [1, 2])
    assert found == pytest.approx(
        {
            "coverage@1": 1 / 4, "arp@1": 8, "popularity_lift@1": 8 / 2.5 - 1,
            "coverage@2": 3 / 4, "arp@2": 5, "popularity_lift@2": 1,
        }
    )  # fmt: skip


@given(st.integers(1, 8).flatmap(lambda items: st.lists(st.permutations(range(items)), min_size=1, max_size=6)))
def test_coverage_grows_to_one_and_the_whole_catalogue_has_its_mean_popularity(lists):
    top = np.array(lists)
    items = top.shape[1]
    frequencies = np.arange(1, items + 1)
    histories = Ragged.from_rows([[0]] * len(lists))
    found = exposure(top, frequencies, histories, range(1, items + 2))
    coverages = [found[f"coverage@{k}"] for k in range(1, items + 2)]
    assert coverages == sorted(coverages)
    # A list is never longer than the catalogue.
    assert coverages[-2:] == [1, 1] or items == 1
    assert found[f"arp@{items}"] == pytest.approx(frequencies.mean())
    assert found[f"popularity_lift@{items}"] == pytest.approx(frequencies.mean() - 1)
