import json
import shutil

import pytest
from study_folders import ask, finish, new_study
from tiny_studies import study_config

from darec_search.space import Point
from darec_search.study import Study, Trial, best_trial
from darec_search.trial import Fidelity, make_spec
from trainer.errors import BadInput

FINGERPRINT = "f" * 64


def reopen(study, **changes):
    config = study.config.model_copy(update=changes)
    return Study.open(config, study.fingerprint, study.space.layers)


def test_asked_twice_found_twice(tmp_path):
    study = new_study(tmp_path / "study")
    first = ask(study, [0] * 12, 0.1, "architecture")
    again = study.request(first.spec.model_copy(update={"number": 99}))
    assert again.spec == first.spec
    assert [trial.spec.id for trial in study.trials()] == [first.spec.id]


def test_the_id_is_what_was_asked_and_nothing_else():
    point, whole = Point((0, 1, 0), {"align": 0.1}), Fidelity(users_fraction=1.0, epochs=3)
    spec = make_spec("study", 0, "weights", point, 0, whole)
    same = make_spec("study", 7, "retest", point, 0, whole, "serial")
    assert spec.id == same.id
    others = [
        make_spec("other", 0, "weights", point, 0, whole),
        make_spec("study", 0, "weights", Point((1, 1, 0), {"align": 0.1}), 0, whole),
        make_spec("study", 0, "weights", Point((0, 1, 0), {"align": 0.2}), 0, whole),
        make_spec("study", 0, "weights", point, 1, whole),
        make_spec("study", 0, "weights", point, 0, Fidelity(users_fraction=1.0, epochs=4)),
    ]
    assert len({spec.id, *(other.id for other in others)}) == 6


def test_a_run_whose_model_is_kept_is_not_answered_by_one_that_left_none():
    point, whole = Point((0, 0, 0), {}), Fidelity(users_fraction=1.0, epochs=3)
    assert make_spec("study", 0, "full", point, 0, whole).id != make_spec("study", 0, "weights", point, 0, whole).id


def test_a_study_is_what_its_folder_says_wherever_it_is_moved(tmp_path):
    study = new_study(tmp_path / "study")
    trial = finish(study, ask(study, [1] * 12, 0.1, "architecture"), 0.3, 0.0)
    shutil.move(tmp_path / "study", tmp_path / "elsewhere")
    moved = Study.load(tmp_path / "elsewhere")
    assert moved.id == study.id
    assert moved.config.folder == tmp_path / "elsewhere"
    assert [found.spec.id for found in moved.trials()] == [trial.spec.id]
    assert best_trial(moved.trials()).objective == pytest.approx(0.3)


def test_it_goes_on_when_only_the_amount_of_work_changes(tmp_path):
    study = new_study(tmp_path / "study")
    search = study.config.search.model_copy(update={"trials": 50, "epochs": 9, "strategy": "joint"})
    promotion = study.config.promotion.model_copy(update={"epochs": 7})
    assert reopen(study, search=search, promotion=promotion).id == study.id
    assert Study.load(study.folder).config.search.trials == 50


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (lambda c: {"seed": 1}, "seed"),
        (lambda c: {"losses": c.losses.model_copy(update={"temperature": 2.0})}, "losses.temperature"),
        (lambda c: {"optimization": c.optimization.model_copy(update={"batch_size": 5})}, "optimization.batch_size"),
        (lambda c: {"data": c.data.model_copy(update={"max_items": 5})}, "data.max_items"),
    ],
)
def test_it_refuses_what_would_change_a_trial(tmp_path, changes, field):
    study = new_study(tmp_path / "study")
    with pytest.raises(BadInput, match=rf"belongs to another study \(it differs in {field}\)"):
        reopen(study, **changes(study.config))


def test_it_refuses_other_data(tmp_path):
    study = new_study(tmp_path / "study")
    with pytest.raises(BadInput, match="differs in fingerprint"):
        Study.open(study.config, "0" * 64, study.space.layers)


def test_a_study_from_before_a_field_was_there_goes_on_with_its_default(tmp_path):
    study = new_study(tmp_path / "study")
    file = study.folder / "environment.json"
    document = json.loads(file.read_text())
    del document["identity"]["model"]["prior"], document["identity"]["data"]["exclude_seen"]
    file.write_text(json.dumps(document))
    assert reopen(study).id == study.id
    with pytest.raises(BadInput, match=r"it differs in data\.exclude_seen\)"):
        reopen(study, data=study.config.data.model_copy(update={"exclude_seen": True}))


@pytest.mark.parametrize("left", [[".environment.json.x1"], ["environment.json"], ["environment.json", "study.yaml"]])
def test_a_kill_while_the_folder_is_made_leaves_one_that_can_be_opened(tmp_path, left):
    study = new_study(tmp_path / "whole")
    folder = tmp_path / "cut"
    folder.mkdir()
    for name in left:
        (folder / name).write_text((study.folder / name).read_text() if (study.folder / name).exists() else "{")
    opened = Study.open(study.config.model_copy(update={"output": str(folder)}), FINGERPRINT, 4)
    assert Study.load(folder).id == opened.id == study.id
    assert opened.trials() == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.yaml", "name: ["),
        ("study.yaml", ""),
        ("study.yaml", "name: tiny\nnews: 1\n"),
        ("environment.json", "{"),
        ("environment.json", "[]"),
        ("environment.json", "{}"),
        ("environment.json", None),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, name, content):
    study = new_study(tmp_path / "study")
    file = study.folder / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(BadInput, match=name):
        Study.load(study.folder)


def test_a_result_that_cannot_be_read_is_kept_aside_and_the_trial_is_open_again(tmp_path):
    study = new_study(tmp_path / "study")
    trial = ask(study, [0] * 12, 0.1, "architecture")
    (trial.folder / "result.json").write_text('{"status": "finis')
    assert [found.status for found in study.trials()] == ["pending"]
    assert (trial.folder / "result.unreadable").exists()


def test_the_dataset_of_a_study_is_the_one_it_searched_on(finished, tmp_path):
    assert finished.study.dataset().fingerprint == finished.study.fingerprint
    other = study_config(tmp_path, data={"path": finished.study.config.data.path})
    with pytest.raises(BadInput, match=r"is not the dataset of .* prepare it again"):
        Study.open(other, FINGERPRINT, 2).dataset()


def test_the_environment_of_the_first_start_stays(tmp_path):
    study = new_study(tmp_path / "study")
    file = study.folder / "environment.json"
    assert reopen(study).environment == study.environment
    file.write_text(json.dumps({**study.environment, "commit": "an earlier one"}))
    resumed = reopen(study)
    assert resumed.environment["commit"] == "an earlier one"
    assert [start["commit"] for start in resumed.environment["resumed_with"]] == [study.environment["commit"]]
    assert reopen(study).environment == resumed.environment == json.loads(file.read_text())


def test_the_environment_tells_versions_and_identity(tmp_path):
    environment = json.loads((new_study(tmp_path / "study").folder / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["identity"]["losses"]["temperature"] == 1.0


def test_a_search_goes_by_its_objective_and_refuses_trials_that_lack_it(tmp_path):
    study = new_study(tmp_path / "study")
    trial = finish(study, ask(study, [0, 1, 0], 0.1, "architecture"), mrr=0.04, started=0.0)
    assert trial.search_value("mrr") == trial.objective == 0.04
    # The best evaluation, which need not be the one with the best MRR.
    assert trial.search_value("log_likelihood") == max(row["log_likelihood"] for row in trial.result.curve)
    old = trial.result.model_copy(update={"curve": [], "metrics": {"mrr": 0.04}})
    with pytest.raises(BadInput, match="was not judged by log_likelihood; choose mrr"):
        Trial(trial.spec, old, trial.folder).search_value("log_likelihood")
    failed = old.model_copy(update={"status": "diverged"})
    assert Trial(trial.spec, failed, trial.folder).search_value("log_likelihood") is None
