from datetime import date

import pytest
from tiny_studies import LAYERS, USERS, study_config

from darec_search import pipeline, planning
from darec_search.study import Study
from trainer.data.prepare import prepare
from trainer.errors import BadInput


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planning")
    planning.open_dataset(study_config(folder))
    return folder


def plan_of(shop, **sections):
    config = study_config(shop, **sections)
    return planning.check(config, planning.open_dataset(config))


def test_it_counts_what_would_run(shop):
    plan = plan_of(shop, search={"trials": 5, "weights": {"align": [0.1, 1], "contrastive": [0, 0.1, 0.2]}})
    assert (plan.layers, plan.users) == (LAYERS, USERS)
    assert plan.items == planning.open_dataset(study_config(shop)).n_items
    assert plan.points == 2 ** (3 * LAYERS) * 6
    assert (plan.weight_trials, plan.search_trials, plan.retests, plan.runs) == (6, 5, 8, 19)
    assert plan.search_users == round(0.6 * USERS)


@pytest.mark.parametrize(
    ("way", "trials"),
    [({}, 6), ({"weight_repeats": 2}, 12), ({"weight_search": "one_at_a_time"}, 4), ({"weights_again": True}, 6)],
)
def test_it_counts_the_trials_for_the_loss_weights(shop, way, trials):
    plan = plan_of(shop, search={"trials": 5, "weights": {"align": [0.1, 1], "contrastive": [0, 0.1, 0.2]}, **way})
    assert plan.weight_trials == trials
    assert plan.weights_again_trials == (trials if "weights_again" in way else 0)
    assert plan.searching == 5 + plan.weight_trials + plan.weights_again_trials


def test_cheaper_trials_are_priced(shop):
    fidelities = [{"epochs": 1, "users_fraction": 0.3}, {"users_fraction": 0.3}]
    plan = plan_of(shop, search={"sampler": "ax_bayes", "epochs": 4, "fidelities": fidelities})
    assert [(cheaper.epochs, cheaper.users) for cheaper in plan.cheaper] == [
        (4, round(0.3 * USERS)),
        (1, round(0.3 * USERS)),
    ]
    assert [cheaper.share for cheaper in plan.cheaper] == pytest.approx([0.5, 0.125])


@pytest.mark.parametrize("search", [{"strategy": "joint"}, {"weights": {"align": [0.1]}}, {"weights": {}}])
def test_without_a_grid_there_are_no_grid_trials(shop, search):
    assert plan_of(shop, search=search).weight_trials == 0


def test_the_dataset_is_prepared_once(shop):
    manifest = shop / "data" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    planning.open_dataset(study_config(shop))
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "recipe", [{"format": "synthetic", "options": {"users": 91, "items": 80}}, {"format": "table"}]
)
def test_a_dataset_of_another_recipe_is_refused(shop, recipe):
    config = study_config(shop)
    data = {**config.data.model_dump(), "prepare": recipe}
    with pytest.raises(BadInput, match="was prepared in another way"):
        planning.open_dataset(study_config(shop, data=data))
    planning.open_dataset(study_config(shop, data={**data, "prepare": None}))


def test_a_recipe_may_be_written_in_other_words(shop, tmp_path):
    (tmp_path / "items.csv").write_text("id,title\n" + "".join(f"{item},thing {item}\n" for item in "abcd"))
    rows = [
        f"u{user},{'abcd'[(user + day) % 4]},{1_514_764_800 + 86_400 * day}" for user in range(5) for day in range(5)
    ]
    (tmp_path / "interactions.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    thresholds = {"min_item_interactions": 3, "min_user_interactions": 3}
    prepare("table", tmp_path, tmp_path / "data", since="2018-01-02", **thresholds)
    for options, same in (
        ({"k_core": "3", "since": date(2018, 1, 2)}, True),
        ({"min_length": 3, "min_item_interactions": 3, "since": "2018-01-02T00:00", "duplicates": "keep"}, True),
        ({"k_core": 3}, False),
        ({"k_core": 3, "since": "2018-01-02", "duplicates": "last"}, False),
    ):
        recipe = {"format": "table", "source": str(tmp_path), "options": options}
        config = study_config(shop, data={"path": str(tmp_path / "data"), "prepare": recipe})
        if same:
            assert planning.open_dataset(config).n_users == 5
        else:
            with pytest.raises(BadInput, match="was prepared in another way"):
                planning.open_dataset(config)


def test_problems_that_need_the_data_are_told_together(shop):
    with pytest.raises(BadInput) as caught:
        plan_of(shop, search={"sampler": "tpe", "fixed_architecture": "SPS"}, data={"max_items": 400})
    assert [line.split(":")[0].strip()[:25] for line in str(caught.value).splitlines()] == [
        "search.fixed_architecture",
        "search.sampler",
        "data.max_items × (data.ma",
    ]


def test_nothing_is_built_or_written_before_everything_is_checked(shop, tmp_path):
    """The built-in backbone takes minutes on a large catalogue."""
    sections = {"output": str(tmp_path / "study"), "cache": str(tmp_path / "cache")}
    config = study_config(shop, **sections)
    Study.open(config, "0" * 64, LAYERS)
    with pytest.raises(BadInput, match="belongs to another study"):
        pipeline.run(config)
    for section in ({"data": {"max_items": 400}}, {"resources": {"runner": "ray", "address": "127.0.0.1:9"}}):
        with pytest.raises(BadInput):
            pipeline.run(study_config(shop, **{**sections, "output": str(tmp_path / "other"), **section}))
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "cache").exists()
