"""An audit of Data_BO: pairs from the study folder, further trainings, and going on after a stop."""

import json

import pytest
from study_folders import ask, final_run, finish, new_study, promote, search
from tiny_studies import study_config

from darec_search import audit as auditing
from darec_search.cli import main
from darec_search.fidelities import full_fidelity
from darec_search.space import Point
from darec_search.trial import make_spec
from darec_search.variants import with_prior
from trainer.config import RunConfig
from trainer.errors import BadInput

DESIGNS = [tuple(int(bit) for bit in f"{number:012b}") for number in range(9)]


@pytest.fixture
def searched(tmp_path):
    """Nine designs, worth their number; design 0 has two seeds."""
    study = new_study(tmp_path / "study")
    for number, bits in enumerate(DESIGNS):
        finish(study, ask(study, bits, 0.1, "architecture"), 0.1 + 0.01 * number, 0.0)
    finish(study, ask(study, DESIGNS[0], 0.1, "retest", "best-1", seed=1000), 0.12, 0.0)
    return study


def on_all(study, spec, mrr):
    finish(study, study.request(spec), mrr, 0.0)


def test_pairs_are_designs_that_were_trained_both_ways(searched):
    full = full_fidelity(searched.config)
    for number, stage in ((0, "full"), (5, "audit")):
        point = Point(DESIGNS[number], {"align": 0.1})
        on_all(searched, make_spec(searched.id, 90 + number, stage, point, 0, full, "serial"), 0.2 + 0.01 * number)
    variant = make_spec(searched.id, 99, "variant", Point(DESIGNS[1], {"align": 0.1}), 0, full, "darec_base")
    on_all(searched, variant, 0.9)
    found = auditing.audit(searched)
    assert [(pair.subset, pair.full) for pair in found.pairs] == [
        (pytest.approx(0.15), pytest.approx(0.25)), (pytest.approx(0.11), pytest.approx(0.2)),
    ]  # fmt: skip
    assert (found.pairs[1].subset_seeds, found.spearman, found.interval) == (2, pytest.approx(1.0), None)
    assert json.loads((searched.folder / "audit.json").read_text()) == found.model_dump(mode="json")


@pytest.mark.parametrize("prior", [True, False])
def test_a_final_model_counts_as_its_design_unless_it_has_a_prior_of_its_own(tmp_path, prior):
    study = new_study(tmp_path / "study")
    search(study)
    promote(study)
    winner = tuple(number % 2 for number in range(study.space.bits))
    finish(study, ask(study, winner, 0.1, "architecture"), 0.02, 0.0)
    final_run(study, winner, mrr=0.03)
    file = study.folder / "final" / "run.json"
    if prior:
        file.write_text(with_prior(RunConfig.model_validate_json(file.read_text())).model_dump_json())
    found = auditing.audit(study)
    assert [pair.full for pair in found.pairs] == ([] if prior else [pytest.approx(0.03)])


def test_further_designs_are_spread_over_the_order_and_asked_for_once(searched):
    specs = auditing.plan(searched, 3)
    assert [DESIGNS.index(spec.bits) for spec in specs] == [8, 4, 0]
    assert {spec.fidelity for spec in specs} == {full_fidelity(searched.config)}
    on_all(searched, specs[0], 0.3)
    assert auditing.plan(searched, 3) == specs
    more = auditing.plan(searched, 5)
    assert more[:3] == specs
    assert len({spec.bits for spec in more}) == 5
    assert len(auditing.plan(searched, 100)) == len(DESIGNS)


def test_a_search_on_all_data_has_nothing_to_audit(tmp_path):
    study = new_study(
        tmp_path / "study", data={"path": "none", "search_fraction": 1.0}, search={"trials": 3}, optimization={}
    )
    with pytest.raises(BadInput, match="trains on all data already"):
        auditing.audit(study)
    with pytest.raises(BadInput, match="trains on all data already"):
        auditing.plan(study, 2)


def test_the_command_trains_what_is_missing_and_no_more(finished, tmp_path, capsys):
    import shutil

    folder = tmp_path / "study"
    shutil.copytree(finished.study.folder, folder)
    home = finished.study.folder.parent
    assert study_config(home).data.path == str(home / "data")
    assert main(["audit", str(folder), "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert main(["audit", str(folder), "--train", "1", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert len(after["pairs"]) >= len(before["pairs"])
    assert {pair["full_seeds"] for pair in after["pairs"]} <= {1, 2}
    results = {file: file.stat().st_mtime_ns for file in folder.glob("trials/*/result.json")}
    assert len(list(folder.glob("trials/*/spec.json"))) == len(results)
    assert main(["audit", str(folder), "--train", "1"]) == 0
    assert {file: file.stat().st_mtime_ns for file in folder.glob("trials/*/result.json")} == results
    assert main(["audit", str(folder), "--train", "0"]) == 2
