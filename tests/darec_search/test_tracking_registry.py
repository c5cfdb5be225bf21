"""Which version of the registered model is the champion, on real SQLite stores that studies share."""

import json
import logging
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from study_folders import export, final_run, new_study, open_store, promote, search

from darec_search.pipeline import reigning
from darec_search.space import Point
from darec_search.study import Study
from darec_search.tracking import TRACKERS
from trainer.training.result import write_atomic

mlflow = pytest.importorskip("mlflow")
OTHER = "e" * 64
WINNER = (1, 1, 0) * 4
"""No candidate of the other studies."""


def promoted(folder, mrr: float, seed: int = 0, fingerprint: str = "f" * 64, ranks: list[int] | None = None) -> Study:
    """A study that ended with this test MRR, and registers as `shop` in the store beside it."""
    tracking = {"registered_model": "shop", "uri": open_store(folder.parent / "mlflow.db")}
    study = new_study(folder, fingerprint=fingerprint, seed=seed, tracking=tracking)
    search(study, finished=4, failed=0)
    promote(study)
    final_run(study, WINNER, mrr)
    export(study, WINNER)
    write_atomic(study.folder / "best" / "architecture.json", json.dumps({"hash": f"{seed} {mrr}"}))
    if ranks:
        table = pa.table({"user": [f"u{i}" for i in range(len(ranks))], "winner": ranks})
        pq.write_table(table, study.folder / "final" / "ranks.parquet")
    return study


def sync(study: Study):
    tracker = TRACKERS["mlflow"](study, None)
    tracker.sync()
    return tracker


def version_of(study: Study, alias: str):
    client = mlflow.MlflowClient(tracking_uri=study.config.tracking.uri, registry_uri=study.config.tracking.uri)
    return client.get_model_version_by_alias("shop", alias)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store whose first champion has a test MRR of 0.03; making the tables of a new one takes seconds."""
    study = promoted(tmp_path_factory.mktemp("registry") / "first", 0.03, ranks=[2, 3, 4, 10] * 30)
    sync(study)
    return study


def test_the_first_is_the_champion_and_says_what_it_is(template):
    champion = TRACKERS["mlflow"](template, None).champion()
    assert (champion.model, champion.version, champion.value) == ("shop", 1, 0.03)
    assert (champion.study, champion.fingerprint) == (template.id, template.fingerprint)
    assert champion.bits == WINNER
    assert champion.weights == {"align": 0.1, "contrastive": 0.001, "collaborative": 0.1}


def test_it_competes_in_other_studies_whose_model_it_fits(template, tmp_path):
    def study(name, **fields):
        return new_study(tmp_path / name, tracking=template.config.tracking.model_dump(), **fields)

    # the other two λ are what these studies have anyway
    assert reigning(study("other", seed=9)) == {"champion": Point(WINNER, {"align": 0.1})}
    assert reigning(study("smaller", layers=2)) == {}
    assert reigning(template) == {}


def test_the_alias_moves_to_what_is_better_on_the_same_data_and_to_nothing_else(template):
    """One story, because every step is a registered version: worse, equal, better, other data, tested again."""
    beside = template.folder.parent
    for seed, mrr in ((1, 0.02), (2, 0.03)):
        assert sync(promoted(beside / f"no-better-{seed}", mrr, seed)).champion().version == 1

    better = promoted(beside / "better", 0.04, 3, ranks=[1, 3, 4, 10] * 30)
    assert sync(better).champion().version == 4
    note = version_of(better, "champion").description
    assert "took the place of version 1" in note
    assert "on the same users" in note
    assert version_of(better, f"best-{'f' * 8}").version == 4

    elsewhere = promoted(beside / "elsewhere", 0.9, 4, OTHER)
    assert sync(elsewhere).champion().version == 4
    assert version_of(elsewhere, f"best-{'e' * 8}").version == 5
    assert "on other data" in mlflow.MlflowClient(better.config.tracking.uri).get_model_version("shop", "5").description

    again = promoted(beside / "again", 0.01, 5, OTHER)
    decision = json.loads((again.folder / "promotion.json").read_text())
    decision["candidates"].append({**decision["candidates"][0], "arm": "champion", "bits": list(WINNER)})
    write_atomic(again.folder / "promotion.json", json.dumps(decision))
    assert sync(again).champion().version == 6
    assert version_of(again, f"best-{'e' * 8}").version == 5, "the other study's model is better on that data"


def test_a_sync_again_moves_nothing_back(template):
    before = TRACKERS["mlflow"](template, None).champion()
    synced = TRACKERS["mlflow"](template, None).sync()
    assert synced.model == "shop/1"
    assert TRACKERS["mlflow"](template, None).champion() == before


def test_a_new_export_of_the_study_takes_its_own_place_unless_it_is_worse(tmp_path):
    study = promoted(tmp_path / "study", 0.03)
    assert sync(study).champion().version == 1
    first = version_of(study, "champion").source
    write_atomic(study.folder / "best" / "architecture.json", json.dumps({"hash": "other"}))
    assert sync(study).champion().version == 2
    assert version_of(study, "champion").source != first, "an older version keeps its files"

    final_run(study, WINNER, 0.02)
    write_atomic(study.folder / "best" / "architecture.json", json.dumps({"hash": "worse"}))
    assert sync(study).champion().version == 2


def test_a_champion_that_does_not_say_what_it_is_stays(tmp_path, caplog):
    study = promoted(tmp_path / "study", 0.03)
    client = mlflow.MlflowClient(study.config.tracking.uri, study.config.tracking.uri)
    client.create_registered_model("shop")
    client.create_model_version("shop", f"file://{tmp_path}/elsewhere", await_creation_for=0)
    client.set_registered_model_alias("shop", "champion", "1")
    with caplog.at_level(logging.WARNING):
        assert sync(study).champion() is None
    assert "version 1 of shop does not say what it is" in caplog.text
    assert version_of(study, "champion").version == 1
    assert version_of(study, f"best-{'f' * 8}").version == 2


def test_no_champion_is_no_error(tmp_path, caplog):
    study = new_study(tmp_path / "study")
    assert TRACKERS["mlflow"](study, None).champion() is None
    assert not (study.folder / "mlflow.db").exists()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with caplog.at_level(logging.WARNING):
        assert TRACKERS["mlflow"](study, f"http://ann:hunter2@127.0.0.1:{port}").champion() is None
    assert "the champion cannot be read (Connection refused)" in caplog.text
    assert "hunter2" not in caplog.text
