"""What `evaluate` reports of an exported model."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from darec_search import cli
from darec_search.export import load
from trainer.data.dataset import Dataset
from trainer.metrics import paired_p_value, ranking_metrics


@pytest.fixture(scope="module")
def data(finished):
    return finished.study.folder.parent / "data"


def evaluate(capsys, *arguments):
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_document_holds_every_measure(capsys, finished, data):
    found = json.loads(evaluate(capsys, finished.model, data, "--cutoffs", "20,5", "--json"))
    at = {
        f"{name}@{k}" for k in (5, 10, 20) for name in ("recall", "ndcg", "mrr", "coverage", "arp", "popularity_lift")
    }
    assert found.keys() == {"split", "users", "mrr", "segments"} | at
    assert 0 < found["coverage@5"] <= found["coverage@10"] <= found["coverage@20"] <= 1
    assert found["segments"].keys() == {"history_length", "target_frequency"}
    for segments in found["segments"].values():
        assert sum(segment["users"] for segment in segments.values()) == found["users"]


def test_top_lists_are_what_is_recommended(finished, data):
    recommender, dataset = load(finished.model), Dataset.open(data)
    evaluation = recommender.evaluate(dataset, "validation", [3])
    histories = [[dataset.item_ids[item] for item in history] for history in dataset.train]
    recommended = recommender.recommend(histories, top=10, users=dataset.user_ids)
    assert [[dataset.item_ids[item] for item in row] for row in evaluation.ranked.top_items.tolist()] == [
        [item.id for item in row] for row in recommended
    ]


def test_what_the_user_has_is_left_out_on_request(capsys, finished, data):
    recommender, dataset = load(finished.model), Dataset.open(data)
    evaluation = recommender.evaluate(dataset, "validation", [3], exclude_seen=True)
    histories = [[dataset.item_ids[item] for item in history] for history in dataset.train]
    recommended = recommender.recommend(histories, top=10, users=dataset.user_ids, exclude_seen=True)
    fresh = ~np.array([target in row for target, row in zip(dataset.validation, dataset.train, strict=True)])
    assert fresh.mean() > 0.9
    for user in np.flatnonzero(fresh):
        shown = [dataset.item_ids[item] for item in evaluation.ranked.top_items[user].tolist()]
        assert shown == [item.id for item in recommended[user]]
    found = json.loads(evaluate(capsys, finished.model, data, "--split", "validation", "--exclude-seen", "--json"))
    assert found["mrr"] == evaluation.document()["mrr"]
    assert found["mrr"] > json.loads(evaluate(capsys, finished.model, data, "--split", "validation", "--json"))["mrr"]


def test_the_per_user_file_tells_what_the_means_are_made_of(capsys, finished, data, tmp_path):
    file = tmp_path / "users.parquet"
    arguments = ["--split", "validation", "--cutoffs", "3", "--per-user", file, "--json"]
    found = json.loads(evaluate(capsys, finished.model, data, *arguments))
    dataset, rows = Dataset.open(data), pq.read_table(file).to_pandas()
    assert rows.user.tolist() == dataset.user_ids
    assert rows.target.tolist() == [dataset.item_ids[item] for item in dataset.validation]
    assert rows.history_length.tolist() == dataset.train.lengths.tolist()
    counts = np.bincount(dataset.train.values, minlength=dataset.n_items)
    assert rows.target_frequency.tolist() == counts[dataset.validation].tolist()
    assert ranking_metrics(torch.tensor(rows["rank"])) == pytest.approx(
        {name: found[name] for name in ("mrr", "recall@10", "ndcg@10")}
    )
    for name, key in (("reciprocal_rank", "mrr"), ("recall@3", "recall@3"), ("ndcg@3", "ndcg@3")):
        assert rows[name].mean() == pytest.approx(found[key])
    assert found["segments"]["target_frequency"]["cold"]["users"] == (rows.target_frequency == 0).sum()
    assert paired_p_value(rows["reciprocal_rank"], np.zeros(len(rows))) < 0.01


def test_a_file_that_cannot_be_written_costs_nothing(capsys, finished, data, tmp_path):
    for place in (tmp_path, tmp_path / "no" / "users.parquet"):
        assert cli.main(["evaluate", str(finished.model), str(data), "--per-user", str(place)]) == 2
        assert "must be a file in a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize("cutoffs", ["0", "5,", "ten", "-3", "2.5"])
def test_cutoffs_that_are_none(capsys, finished, data, cutoffs):
    assert cli.main(["evaluate", str(finished.model), str(data), f"--cutoffs={cutoffs}"]) == 2
    assert "--cutoffs" in capsys.readouterr().err
