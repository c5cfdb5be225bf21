import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import ranking_metrics
from trainer.segments import HISTORY_LENGTH, TARGET_FREQUENCY, segment_metrics

users = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 50)), min_size=1, max_size=30)


@given(users, st.sampled_from([HISTORY_LENGTH, TARGET_FREQUENCY]))
def test_segments_part_the_users_and_their_means_make_the_whole_mean(users, bounds):
    values, ranks = np.array(users).T
    ranks = torch.from_numpy(ranks).double()
    segments = segment_metrics(values, bounds, ranks, [5])
    assert sum(segment["users"] for segment in segments.values()) == len(users)
    for name, mean in ranking_metrics(ranks, [5]).items():
        total = sum(segment["users"] * segment[name] for segment in segments.values() if segment["users"])
        assert total / len(users) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("bounds", "value", "segment"),
    [
        *((TARGET_FREQUENCY, value, name) for value, name in ((0, "cold"), (1, "rare"), (9, "rare"), (10, "warm"))),
        *((HISTORY_LENGTH, value, name) for value, name in ((1, "1-4"), (4, "1-4"), (5, "5-9"), (19, "10-19"))),
        (HISTORY_LENGTH, 20, "20+"),
        (HISTORY_LENGTH, 900, "20+"),
    ],
)
def test_where_the_segments_part(bounds, value, segment):
    found = segment_metrics(np.array([value]), bounds, torch.tensor([2.0]))
    assert found[segment]["users"] == 1
    assert found[segment]["mrr"] == 0.5
    assert [other for name, other in found.items() if name != segment] == [{"users": 0}] * (len(bounds) - 1)
