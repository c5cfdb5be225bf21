"""What a study would take, from steps that are given."""

import pytest
from study_folders import new_study

from darec_search.estimate import estimate
from darec_search.planning import Plan
from trainer.training.probe import Probe, Range

PLAN = Plan(
    layers=2, points=64, weight_trials=0, search_trials=10, cheaper=[], weights_again_trials=0, retests=8, full_runs=3,
    search_users=500, users=1000, items=100, fingerprint="f", warm_start=[],
)  # fmt: skip
PROBE = Probe(
    device="cpu", threads=1, step_s=Range(1, 1, 1), evaluation_s=20, begin_s=0, save_s=0, steps_per_epoch=100,
    users_timed=100, checkpoint_bytes=0, model_bytes=0, backbone_bytes=0, memory_bytes=Range(1, 1, 1),
)  # fmt: skip


def stages(folder, **resources):
    study = new_study(folder, search={"epochs": 3, "weights": {}}, resources={"lanes": 1, **resources})
    return {stage.name: stage for stage in estimate(study.config, PLAN, PROBE).stages}


def test_workers_that_share_a_trial_end_it_sooner_for_the_same_hours(tmp_path):
    one, two = stages(tmp_path / "one"), stages(tmp_path / "two", cpus_per_lane=2, workers_per_lane=2)
    assert one["search for bits"].seconds.middle == pytest.approx(3 * 120)
    for name in ("search for bits", "re-tests", "arms on all users"):
        assert two[name].seconds.middle == pytest.approx(one[name].seconds.middle / 2)
        assert two[name].wall_hours.middle == pytest.approx(one[name].wall_hours.middle / 2)
        assert two[name].hours.middle == pytest.approx(one[name].hours.middle)
    assert two["winner on all users"] == one["winner on all users"]
