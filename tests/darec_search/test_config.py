from pathlib import Path

import pytest
import yaml
from tiny_studies import study_config, study_document

from darec_search.config import StudyConfig, apply_overrides, load_study, read_yaml
from darec_search.runfile import is_run_file, load_run_file
from trainer.config import RunConfig, Section
from trainer.errors import BadInput
from trainer.training.attempts import Held


def problems(tmp_path, *overrides, **sections):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study_document(tmp_path, **sections)))
    with pytest.raises(BadInput) as caught:
        load_study(file, overrides)
    return str(caught.value)


def sections_of(model, path=""):
    for name, field in model.model_fields.items():
        yield f"{path}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections_of(field.annotation, f"{path}{name}.")


@pytest.mark.parametrize("model", [StudyConfig, RunConfig])
def test_every_field_is_documented(model):
    assert not [path for path, field in sections_of(model) if not field.description]


def test_all_problems_are_told_at_once_with_their_paths(tmp_path):
    text = problems(
        tmp_path,
        search={"trails": 3, "trials": 0, "weights": {"align": [1.0, 0.1]}},
        model={"backbone": {"builtin": {"hidden": 10, "heads": 3}}, "masks": []},
        losses={"align": float("nan")},
        tracking="mlflow",
    )
    assert text.startswith(f"{tmp_path / 'study.yaml'}: 7 problems")
    for path in (
        "search.trails: unknown field",
        "search.trials: ",
        "search.weights.align: levels must be",
        "model.backbone.builtin: heads (3) must divide hidden (10)",
        "losses.align: ",
        "tracking: ",
        "model.masks: name one or two masks",
    ):
        assert f"\n  {path}" in text, text


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"search": {"sampler_options": {"seed": 3}}}, "search.sampler_options: seed cannot be given here"),
        (
            {"data": {"prepare": {"format": "synthetic", "options": {"out": "x"}}}},
            "data.prepare.options: out cannot be given here",
        ),
        ({"name": "../up"}, "name: "),
        ({"resources": {"runner": "local", "workers_per_lane": 2}}, "resources.workers_per_lane: the local runner"),
        (
            {"resources": {"runner": "ray", "gpus_per_lane": 1, "workers_per_lane": 2}},
            "resources.workers_per_lane: the workers of a",
        ),
    ],
)
def test_values_that_would_only_fail_later(tmp_path, sections, field):
    assert field in problems(tmp_path, **sections)


@pytest.mark.parametrize("way", [{"weight_search": "one_at_a_time"}, {"weight_repeats": 2}, {"weights_again": True}])
def test_ways_of_a_staged_search_are_refused_for_a_joint_one(tmp_path, way):
    assert f"search.{next(iter(way))}" in problems(tmp_path, search={"strategy": "joint", **way})


def test_overrides_are_yaml_and_make_their_sections():
    document = apply_overrides({"a": {"b": 1}}, ["a.b=[1, 2.5]", "a.c=x", "d.e.f=null", "text=a=b"])
    assert document == {"a": {"b": [1, 2.5], "c": "x"}, "d": {"e": {"f": None}}, "text": "a=b"}


@pytest.mark.parametrize("override", ["a", "=3", "a.b.c=1", "a=[1"])
def test_overrides_that_cannot_be_applied_are_named(override):
    with pytest.raises(BadInput, match="--set"):
        apply_overrides({"a": {"b": 1}}, [override])


def test_an_override_wins_over_the_file(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study_document(tmp_path)))
    assert load_study(file, ["search.trials=7"]).search.trials == 7
    assert "search.trials" in problems(tmp_path, "search.trials=many")


def test_a_run_has_the_weights_it_is_given_and_keeps_the_others(tmp_path):
    config = study_config(tmp_path, losses={"align": 0.5, "collaborative": 0.25})
    run = config.run_config("parallel", {"align": 2.0}, 5, users_fraction=0.5, epochs=3)
    assert (run.losses.align, run.losses.collaborative) == (2.0, 0.25)
    assert (run.model.architecture, run.seed) == ("parallel", 5)
    assert (run.data.users_fraction, run.optimization.epochs) == (0.5, 3)
    assert run.optimization.batch_size == config.optimization.batch_size


def test_the_workers_of_a_lane_share_what_it_holds(tmp_path):
    resources = study_config(
        tmp_path, resources={"runner": "ray", "cpus_per_lane": 8, "gpus_per_lane": 2, "workers_per_lane": 2}
    ).resources
    assert (resources.held, resources.each) == (Held(8, 2), Held(4, 1))


def test_the_examples_are_valid():
    examples = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
    assert examples
    for file in examples:
        load = load_run_file if is_run_file(read_yaml(file)) else load_study
        load(file)
