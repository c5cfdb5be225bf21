"""Amazon Scientific, as described in the README beside it."""

import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from trainer.baselines import REFERENCES, evaluate, ranked_by
from trainer.config import NegativesConfig
from trainer.data.dataset import Dataset
from trainer.data.negatives import hard_negatives
from trainer.data.prepare import prepare
from trainer.metrics import ranking_metrics

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def scientific(realdata, tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("scientific") / "data"
    started = time.monotonic()
    prepare("table", realdata / "scientific", folder)
    assert time.monotonic() - started < 10
    return Dataset.open(folder)


def test_counts(scientific):
    manifest = scientific.manifest
    assert (manifest.users, manifest.items, manifest.interactions) == (8442, 4385, 59427)
    assert manifest.train_interactions == 42543
    assert sum(manifest.removed.values()) == 0
    assert manifest.warnings == []
    assert manifest.fingerprint.startswith("bf2ba9372d48")
    figures = manifest.figures
    assert [figures[f"length_{q}%"] for q in (0, 25, 50, 75, 95, 99, 100)] == [5, 5, 6, 8, 13, 20, 80]
    assert [figures[f"item_interactions_{q}%"] for q in (0, 50, 100)] == [5, 8, 490]
    assert figures["mean_length"] == 7.0394
    assert figures["repeats"] == 291
    assert figures["items_without_training_interaction"] == 12
    assert figures["items_with_two_or_fewer_training_interactions"] == 12 + 53 + 188


def test_histories(scientific):
    ids, train = np.array(scientific.item_ids), scientific.train
    test = scientific.open_test()
    assert scientific.user_ids[0] == "ABW8NXS7SV55K"
    assert len(train[0]) + 2 == 14
    assert ids[train[0][:3]].tolist() == ["B00TNNWMXI", "B00IBZE2EQ", "B010Y25PQC"]
    assert scientific.user_ids[-1] == "A2YTHWQ65JRAJT"
    assert ids[test[-1]] == "B016996EEQ"
    counts = Counter(ids[train.values].tolist())
    assert counts.most_common(2) == [("B00DRALJ28", 356), ("B000EJUBBU", 202)]
    by_item = np.bincount(train.values, minlength=scientific.n_items)
    assert [(by_item == count).sum() for count in range(3)] == [12, 53, 188]
    assert (by_item[test] == 0).sum() == 37
    assert (by_item[test] <= 2).sum() == 615
    before = scientific.inputs("test")
    assert sum(target in history for target, history in zip(test, before, strict=True)) == 50
    assert sum(target == history[-1] for target, history in zip(test, before, strict=True)) == 16


def test_items(scientific):
    assert list(scientific.attributes) == ["title", "brand", "categories"]
    assert sum(not value for value in scientific.attributes["categories"]) == 134
    assert sum(not value for value in scientific.attributes["brand"]) == 12
    shared = Counter(title.lower() for title in scientific.titles)  # the README counts without case
    assert len(shared) == 4346
    assert sum(count for count in shared.values() if count > 1) == 56
    assert scientific.sentences[0].startswith("title eSUN Bronze filament 1.75mm")
    assert " brand eSUN categories Industrial & Scientific " in scientific.sentences[0]


@pytest.mark.parametrize(("fraction", "users"), [(0.04, 338), (0.2, 1688)])
def test_subsets(scientific, fraction, users):
    assert scientific.subset(fraction, 0).n_users == users


@pytest.mark.parametrize(
    ("name", "split", "recall", "ndcg", "mrr"),
    [
        ("popularity", "validation", 0.0378, 0.0206, 0.0204),
        ("popularity", "test", 0.0309, 0.0171, 0.0174),
        ("neighbours", "test", 0.1220, 0.0821, 0.0762),
        ("itemknn", "test", 0.0964, 0.0645, 0.0596),
    ],
)
def test_references(scientific, name, split, recall, ndcg, mrr):
    opened = scientific.unsealed("test of the references") if split == "test" else scientific
    metrics = evaluate(REFERENCES[name].fit(scientific), opened, split)
    assert metrics == pytest.approx({"recall@10": recall, "ndcg@10": ndcg, "mrr": mrr}, abs=6e-5)


def test_itemknn_agrees_with_recbole(scientific):
    """RecBole 1.2.1 (k 100, shrink 0) knows the training part of a history alone, even before the test item."""
    fitted = REFERENCES["itemknn"].fit(scientific)
    ranks, _ = ranked_by(fitted, scientific.train, scientific.open_test())
    assert ranking_metrics(ranks) == pytest.approx({"recall@10": 0.0610, "ndcg@10": 0.0369, "mrr": 0.0338}, abs=2e-4)


def test_hard_negatives_never_share_a_user(scientific, tmp_path):
    part = scientific.subset(0.2, 0)
    found = hard_negatives(part, NegativesConfig(), tmp_path)
    bought = part.training_matrix()
    together = bought.T @ bought
    rows, columns = found.row_of_value, found.values
    assert together[rows, columns].sum() == 0
    assert found.lengths.max() <= 2 * np.ceil(0.005 * part.n_items)
    assert found.lengths.mean() > 20


def test_opening_takes_a_moment_and_no_torch(scientific):
    code = (
        "import sys, time, pathlib; started = time.monotonic(); from trainer.data.dataset import Dataset; "
        f"Dataset.open(pathlib.Path({str(scientific.folder)!r})); "
        "print('torch' in sys.modules, time.monotonic() - started)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    has_torch, seconds = run.stdout.split()
    assert has_torch == "False"
    assert float(seconds) < 3  # 0.5 s on an idle machine, imports included
