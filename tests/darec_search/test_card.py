"""The architecture card: its published schema, and the card as an architecture in configs."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from tiny_studies import study_document

from darec_search import cli
from darec_search.card import Card, architecture_text, json_schema, read_card
from darec_search.config import load_study
from darec_search.runfile import load_run_file
from trainer.errors import BadInput

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "architecture-card.v1.json"


def test_the_published_schema_is_up_to_date():
    """`python -m darec_search.card > docs/schemas/architecture-card.v1.json` writes it."""
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == json_schema()


def test_a_real_card_is_valid_and_a_wrong_one_is_not(finished):
    validator = jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text(encoding="utf-8")))
    validator.check_schema(validator.schema)
    card = json.loads((finished.model / "architecture.json").read_text(encoding="utf-8"))
    validator.validate(card)
    for wrong in ({"version": 2}, {"bits": [0, 2]}, {"news": 1}, {"users": 0}):
        assert not validator.is_valid({**card, **wrong}), wrong


def test_a_card_of_an_earlier_writer_is_still_intact(finished):
    card = read_card(finished.model)
    assert card.sample is not None
    assert card.task is not None
    earlier = card.model_copy(update={"sample": None, "unseen": None, "task": None}).sealed()
    written = earlier.model_dump(mode="json", exclude={"format", "sample", "unseen", "task"})
    assert Card.model_validate(written).intact
    assert not Card.model_validate({**written, "format": "card"}).intact


def test_a_path_to_a_card_is_an_architecture(finished, tmp_path, monkeypatch):
    text = read_card(finished.model).architecture
    assert architecture_text(str(finished.model)) == text
    assert architecture_text(str(finished.model / "architecture.json")) == text
    assert [architecture_text(name) for name in ("serial", "sps-pps")] == ["serial", "sps-pps"]
    monkeypatch.chdir(finished.model.parent)
    assert architecture_text(finished.model.name) == text
    with pytest.raises(BadInput, match=r"nowhere: is no exported model"):
        architecture_text("./nowhere")


def test_configs_take_cards(finished, tmp_path):
    text = read_card(finished.model).architecture
    document = study_document(tmp_path, search={"fixed_architecture": str(finished.model)})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(document))
    assert load_study(tmp_path / "study.yaml").search.fixed_architecture == text
    run = {"data": {"path": "somewhere"}, "model": {"architecture": str(finished.model / "architecture.json")}}
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({**run, "runs": {"a": {}, "b": {"model.architecture": "serial"}}})
    )
    runs = load_run_file(tmp_path / "run.yaml").runs
    assert [runs[name].config.model.architecture for name in "ab"] == [text, "serial"]


@pytest.mark.parametrize("changes", [{"version": 7}, {"seed": 99}])
def test_a_card_that_cannot_be_used_is_named_by_its_field(finished, tmp_path, capsys, changes):
    document = json.loads((finished.model / "architecture.json").read_text(encoding="utf-8"))
    (tmp_path / "card.json").write_text(json.dumps({**document, **changes}))
    study = study_document(tmp_path, search={"fixed_architecture": str(tmp_path / "card.json")})
    run = {"data": {"path": "somewhere"}, "model": {"architecture": str(tmp_path / "card.json")}}
    for name, content, field in (
        ("study", study, "search.fixed_architecture"),
        ("run", run, "model.architecture"),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        assert cli.main(["check", str(tmp_path / f"{name}.yaml")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"{field}: {tmp_path / 'card.json'}: {'version 7' if 'version' in changes else 'was changed'}" in said


def test_a_card_of_other_layers_is_refused(finished, tmp_path, capsys):
    deeper = {"backbone": {"builtin": {"layers": 3, "hidden": 16, "heads": 2, "vocabulary": 300, "steps": 5}}}
    data = {"path": str(finished.study.folder.parent / "data")}
    document = study_document(tmp_path, data=data, model=deeper, search={"fixed_architecture": str(finished.model)})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(document))
    assert cli.main(["check", str(tmp_path / "study.yaml")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "search.fixed_architecture: architecture" in said
    assert "describes 2 DALayers, the model has 3" in said
