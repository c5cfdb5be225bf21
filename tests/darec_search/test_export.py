import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_studies import study_config, study_document

from darec_search import pipeline
from darec_search.card import read_card
from darec_search.export import Card, export, load
from darec_search.identity import differing
from darec_search.onnx_export import ranks_of
from darec_search.study import Study
from darec_search.verification import NotReproduced
from trainer.config import PriorConfig
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.data.relations import Relations
from trainer.errors import BadInput


@pytest.fixture
def model(finished, tmp_path):
    """A copy of the export, to be spoilt."""
    return shutil.copytree(finished.model, tmp_path / "model")


@pytest.fixture(scope="module")
def dataset(finished):
    return Dataset.open(finished.study.folder.parent / "data")


def edit_card(model, **changes):
    file = model / "architecture.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_it_measures_what_the_study_measured(finished, dataset):
    recorded = json.loads((finished.study.folder / "final" / "metrics.json").read_text())
    recommender = load(finished.model)
    measured = recommender.evaluate(dataset).document()
    assert {name: measured[name] for name in recorded} == pytest.approx(recorded, abs=1e-6)
    validation = recommender.evaluate(dataset, "validation").document()
    assert validation["mrr"] == pytest.approx(finished.study.final_result().metrics["mrr"], abs=1e-6)


def test_the_card_tells_what_it_is(finished):
    card = load(finished.model).card
    best = finished.promotion.best
    assert card.bits == best.bits
    assert best.weights.items() <= card.losses.model_dump().items()
    assert card.fingerprint == finished.study.fingerprint
    assert set(card.metrics) == {"validation", "test"}
    assert card.versions["torch"]
    assert not list(finished.model.rglob("*.bin")) + list(finished.model.rglob("*.p*kl*"))


def test_a_final_model_with_a_prior_has_a_task_of_its_own(finished):
    """Its values are not those of the search's trials, so a warm start may not take them for such."""
    card, searched = load(finished.model).card, finished.study.environment["identity"]
    assert card.model.prior is not None
    assert differing(searched, card.task.identity) == sorted(
        [f"model.prior.{name}" for name in PriorConfig.model_fields]
        + ["model.head_dropout", "optimization.rates.head", "optimization.rates.prior"]
    )


def test_it_works_where_no_study_is(finished, tmp_path, dataset):
    model = shutil.copytree(finished.model, tmp_path / "carried off" / "model")
    history = dataset.item_ids[:3]
    script = "import sys; from darec_search.export import load; import json;"
    script += "print(json.dumps([[i.id, i.score] for i in load(sys.argv[1]).recommend([sys.argv[2:]], top=4)[0]]))"
    ran = subprocess.run(
        [sys.executable, "-c", script, str(model), *history], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    here = [[item.id, pytest.approx(item.score, abs=1e-5)] for item in load(finished.model).recommend([history], 4)[0]]
    assert json.loads(ran.stdout) == here


def test_recommendations_are_the_highest_scores_best_first(finished, dataset):
    histories = [dataset.item_ids[:1], dataset.item_ids[5:12]]
    found = load(finished.model).recommend(histories, top=10_000)
    for items in found:
        assert sorted(item.id for item in items) == sorted(dataset.item_ids)
        assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)
    one_by_one = [load(finished.model).recommend([history], top=3)[0] for history in histories]
    assert [[item.id for item in items[:3]] for items in found] == [[i.id for i in items] for items in one_by_one]
    title = dict(zip(dataset.item_ids, dataset.titles, strict=True))
    assert all(item.title == title[item.id] for item in found[0])


def test_only_the_newest_items_of_a_history_are_read(finished, dataset):
    recommender = load(finished.model)
    long = dataset.item_ids[: recommender.card.max_items + 5]
    short = long[-recommender.card.max_items :]
    assert recommender.recommend([long], 3) == recommender.recommend([short], 3)


def test_a_known_user_is_not_the_average_user_and_an_unseen_one_is(finished, dataset):
    recommender, history = load(finished.model), dataset.item_ids[:2]

    def scores(user):
        (items,) = recommender.recommend([history], top=20, users=[user])
        return {item.id: item.score for item in items}

    assert scores("nobody ever") == scores(None)
    assert scores(dataset.user_ids[0]) != scores(None)


@pytest.mark.parametrize(
    ("histories", "users", "words"),
    [
        ([["no-such"]], None, "history 1: item 'no-such' is unknown"),
        ([[0], []], None, "history 2: is empty"),
        ([[0]], ["a", "b"], "2 for 1 histories"),
    ],
)
def test_histories_that_cannot_be_read(finished, dataset, histories, users, words):
    histories = [[dataset.item_ids[item] if item == 0 else item for item in history] for history in histories]
    with pytest.raises(BadInput, match=words):
        load(finished.model).recommend(histories, users=users)


def test_nothing_to_recommend_for(finished):
    assert load(finished.model).recommend([]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": [1, 1, 1, 0, 0, 0]},
        {"metrics": {"validation": {"mrr": 1.0, "recall@10": 1.0, "ndcg@10": 1.0}}},
        {"sha256": "0" * 64},
        {"version": 2},
        {"news": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_card_that_was_changed_is_refused(model, changes):
    edit_card(model, **changes)
    with pytest.raises(BadInput, match=r"architecture\.json"):
        load(model)


def test_a_card_is_intact_only_as_it_was_sealed(model):
    card = Card.model_validate_json((model / "architecture.json").read_text())
    assert card.intact
    assert not card.model_copy(update={"seed": 9}).intact
    assert card.model_copy(update={"seed": 9}).sealed().intact


def test_a_model_file_that_was_changed_is_refused(model):
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"model\.safetensors: is not the one that architecture\.json describes"):
        load(model)


def test_items_in_another_order_are_refused(model):
    items = pq.read_table(model / "items.parquet")
    pq.write_table(items.take(pa.array(range(items.num_rows - 1, -1, -1))), model / "items.parquet")
    with pytest.raises(BadInput, match=r"items\.parquet: is not the one"):
        load(model)


@pytest.mark.parametrize("part", ["model.safetensors", "items.parquet", "users.parquet", "backbone"])
def test_a_missing_part_is_named(model, part):
    shutil.rmtree(model / part) if part == "backbone" else (model / part).unlink()
    with pytest.raises(BadInput, match=part):
        load(model)


def test_other_items_cannot_be_evaluated(finished, tmp_path):
    prepare("synthetic", None, tmp_path / "other", users=90, items=80, seed=5)
    with pytest.raises(BadInput, match=r"other: its \d+ items are not the \d+ items of this export"):
        load(finished.model).evaluate(Dataset.open(tmp_path / "other"))


def test_an_export_replaces_an_older_one_and_nothing_else(finished, tmp_path):
    out = tmp_path / "deep" / "model"
    first = export(finished.study, out, verified=False)
    (out / "stale.txt").write_text("old")
    assert export(finished.study, out, verified=False) == first
    assert not (out / "stale.txt").exists()
    assert not [file for file in out.parent.iterdir() if file != out]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for taken in ("mine", "file", "file/below"):
        with pytest.raises(BadInput, match=taken):
            export(finished.study, tmp_path / taken)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "dear"


def test_a_final_run_that_has_not_finished_is_not_exported(finished, tmp_path):
    """The next winner's config may stand beside the last one's model when a final run is cut short."""
    shutil.copytree(finished.study.folder, tmp_path / "study")
    (tmp_path / "study" / "final" / "result.json").unlink()
    with pytest.raises(BadInput, match=r"no final model yet; run `darec-search promote"):
        export(Study.load(tmp_path / "study"), tmp_path / "out")


def test_the_card_names_the_commit_that_was_trained_on(finished, tmp_path, monkeypatch):
    """Not the newest one of its hub id."""
    trained_on, newest = "a" * 40, "b" * 40
    repository = tmp_path / "hub" / "models--someone--tiny"
    for commit in (trained_on, newest):
        shutil.copytree(finished.model / "backbone", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(newest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    final = shutil.copytree(finished.study.folder, tmp_path / "study") / "final"
    ran = json.loads((final / "run.json").read_text())
    ran["model"]["backbone"]["name"] = "someone/tiny"
    (final / "run.json").write_text(json.dumps(ran))
    result = json.loads((final / "result.json").read_text())
    (final / "result.json").write_text(json.dumps({**result, "revision": trained_on}))
    # The fresh process would ask the true hub.
    card = export(Study.load(tmp_path / "study"), tmp_path / "out", verified=False).card
    assert (card.model.backbone.name, card.model.backbone.revision) == ("someone/tiny", trained_on)
    assert not (tmp_path / "out" / "backbone").exists()
    assert load(tmp_path / "out").card == card


def test_a_fresh_process_reproduces_the_recorded_metric(finished, tmp_path):
    found = export(finished.study, tmp_path / "out").verified
    ranks = pq.read_table(finished.study.folder / "final" / "ranks.parquet").column("winner").to_pylist()
    assert (found.split, found.users) == ("test", len(ranks))
    assert found.recorded == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))
    assert found.mrr == pytest.approx(found.recorded, abs=1e-6)


def test_an_export_that_does_not_reproduce_is_not_kept(finished, tmp_path):
    study = shutil.copytree(finished.study.folder, tmp_path / "study")
    ranks = pq.read_table(study / "final" / "ranks.parquet")
    place = ranks.column_names.index("winner")
    better = pa.array([1.0] * ranks.num_rows)
    pq.write_table(ranks.set_column(place, "winner", better), study / "final" / "ranks.parquet")
    with pytest.raises(NotReproduced, match=r"found MRR .* but the study recorded 1\.000000"):
        export(Study.load(study), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]


def test_a_card_alone(finished, tmp_path):
    exported = export(finished.study, tmp_path / "out", "card")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "architecture.json",
        "architecture.png",
        "README.md",
    }
    assert exported.card.bits == load(finished.model).card.bits
    with pytest.raises(BadInput, match="format card, which holds no torch model"):
        load(tmp_path / "out")


@pytest.mark.slow
def test_scores_as_a_graph(finished, tmp_path, dataset):
    """The fresh process ranks by ONNX alone; the scores are those of the torch model, padding or not."""
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = export(finished.study, tmp_path / "out", "onnx-scores")
    assert exported.verified.mrr == pytest.approx(exported.verified.recorded, abs=1e-6)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "scores.onnx")
    histories = [[3, 1], [7], [0, 2, 5, 9, 4, 1]]
    users = np.array([0, -1, -1])
    expected = load(finished.model).trained.scores([np.array(row) for row in histories], users).numpy()
    for length in (6, 2):
        shown = [place for place, row in enumerate(histories) if len(row) <= length]
        items = np.array([[-1] * (length - len(histories[place])) + histories[place] for place in shown])
        (scores,) = session.run(None, {"items": items, "users": users[shown]})
        assert np.abs(scores - expected[shown]).max() < 1e-4
    left_out = read_card(tmp_path / "out").model_copy(update={"exclude_seen": True}).sealed()
    (tmp_path / "out" / "architecture.json").write_text(left_out.model_dump_json())
    found = ranks_of(tmp_path / "out", dataset, "validation", np.arange(dataset.n_users))
    torch_ranks = load(finished.model).evaluate(dataset, "validation", exclude_seen=True).ranked.ranks.numpy()
    assert np.mean(found == torch_ranks) > 0.95  # scores that nearly tie may change places


def test_without_onnx_the_format_is_refused_in_one_sentence(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"needs onnx and onnxscript and onnxruntime; install them by `pip install 'dar"):
        export(finished.study, tmp_path / "out", "onnx-scores")
    assert not (tmp_path / "out").exists()


def test_unseen_users_get_the_better_vector(finished, dataset):
    """The card says which way ranked better; both can be had."""
    recommender = load(finished.model)
    unseen, trained = recommender.card.unseen, recommender.trained
    assert unseen.default == ("fold_in" if unseen.fold_in > unseen.average else "average")
    assert (trained.fold_in is not None) == (unseen.default == "fold_in")
    histories, nobody = [np.array([1, 2, 3]), np.array([9])], np.array([-1, -1])
    fold_in = trained.fitted_fold_in(dataset)
    vectors = fold_in.vectors(trained.model.collaborative.items(), np.array([1, 2, 3, 9]), np.array([3, 1]))
    assert vectors.shape == (2, trained.model.collaborative.representation)
    folded = trained.folding_in(fold_in).scores(histories, nobody)
    average = trained.folding_in(None).scores(histories, nobody)
    assert not torch.equal(folded, average)
    known = np.array([0, 5])
    assert torch.equal(
        trained.folding_in(fold_in).scores(histories, known), trained.folding_in(None).scores(histories, known)
    )


@pytest.mark.slow
def test_a_prior_is_carried_off_with_the_model(tmp_path):
    """So is the rule that a study judges by, here that nothing seen is ranked: the export reproduces its metrics."""
    document = study_document(tmp_path)
    model, data = {**document["model"], "prior": {"fit_steps": 5}}, {**document["data"], "exclude_seen": True}
    found = pipeline.run(study_config(tmp_path, model=model, data=data, tracking={"enabled": False}))
    recommender = load(found.model)
    assert recommender.card.exclude_seen
    measured = recommender.evaluate(Dataset.open(tmp_path / "data")).document()
    assert measured["mrr"] == pytest.approx(found.comparison[0]["mrr"], abs=1e-6)
    assert "but those of the user's history" in (found.model / "README.md").read_text()
    assert recommender.recommend([recommender.item_ids[:1]], top=3)
    relations = Relations.load(found.model / "relations.safetensors")
    replace(relations, together=relations.next).save(found.model / "relations.safetensors")
    with pytest.raises(BadInput, match=r"relations.safetensors: is not the one that architecture.json describes"):
        load(found.model)
