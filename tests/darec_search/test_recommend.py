"""`recommend`: histories from arguments and files, known users, seen items, and what it needs to run."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from darec_search import cli
from darec_search.export import load
from trainer.data.dataset import Dataset


@pytest.fixture(scope="module")
def recommender(finished):
    return load(finished.model)


@pytest.fixture(scope="module")
def dataset(finished):
    return Dataset.open(finished.study.folder.parent / "data")


@pytest.fixture
def call(finished, capsys):
    def called(*arguments, code=0):
        assert cli.main(["recommend", str(finished.model), *map(str, arguments)]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else " ".join(said.err.split())

    return called


def test_ids_and_titles_name_the_same_items(call, recommender):
    ids = recommender.item_ids[:2]
    by_id = json.loads(call("--history", ",".join(ids), "--json"))
    titles = recommender.titles(ids)
    by_title = json.loads(call("--title", titles[0].upper(), "--title", titles[1], "--json"))
    assert by_id == by_title
    assert by_id[0]["history"] == ids
    assert [list(item) for item in by_id[0]["items"]] == [["id", "title", "score"]] * 10


def test_the_table_has_titles(call, recommender):
    out = " ".join(call("--history", recommender.item_ids[0], "--top", 3).split())
    assert recommender.titles(recommender.item_ids[:1])[0] in out
    assert all(item.id in out for item in recommender.recommend([recommender.item_ids[:1]], 3)[0])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_a_batch_from_a_file_to_a_file(call, recommender, dataset, tmp_path, suffix):
    ids, user = recommender.item_ids, dataset.user_ids[0]
    rows = [(ids[:3], user), (ids[4:5], None)]
    source, out = tmp_path / f"in.{suffix}", tmp_path / f"out.{'csv' if suffix == 'txt' else suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"user": [user, None], "history": [row[0] for row in rows]}), source)
    elif suffix == "jsonl":
        source.write_text("".join(json.dumps({"user": who, "history": items}) + "\n" for items, who in rows))
    elif suffix == "txt":
        rows = [(items, None) for items, _ in rows]
        source.write_text("".join(",".join(items) + "\n\n" for items, _ in rows))
    else:
        with source.open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if suffix == "tsv" else ",").writerows(
                [["user", "history"], *([who or "", "|".join(items)] for items, who in rows)]
            )
    expected = recommender.recommend([row[0] for row in rows], 4, [row[1] for row in rows])
    assert str(out) in call("--histories", source, "--top", 4, "--out", out)
    assert _written(out) == [[(item.id, item.title, pytest.approx(item.score)) for item in items] for items in expected]


def _written(out):
    if out.suffix == ".jsonl":
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return [[(item["id"], item["title"], item["score"]) for item in line["items"]] for line in lines]
    if out.suffix == ".parquet":
        rows = pq.read_table(out).to_pylist()
    else:
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if out.suffix == ".tsv" else ","))
    found = [[] for _ in range(max(int(row["history"]) for row in rows))]
    for row in rows:
        found[int(row["history"]) - 1].append((row["id"], row["title"], float(row["score"])))
        assert int(row["rank"]) == len(found[int(row["history"]) - 1])
    return found


def test_seen_items_are_left_out_on_request(call, recommender):
    ids = recommender.item_ids
    everything = recommender.recommend([ids[:5], ids[:1] * 3], len(ids))
    left = recommender.recommend([ids[:5], ids[:1] * 3], len(ids), exclude_seen=True)
    assert [
        [item for item in found if item.id not in ids[:seen]] for found, seen in zip(everything, (5, 1), strict=True)
    ] == left
    few = recommender.recommend([ids[:5]], 7, exclude_seen=True)[0]
    assert [item.id for item in few] == [item.id for item in left[0][:7]]
    (shown,) = json.loads(call("--history", ",".join(ids[:5]), "--exclude-seen", "--top", 7, "--json"))
    assert [item["id"] for item in shown["items"]] == [item.id for item in few]


def test_a_known_user_by_id(call, recommender, dataset):
    user = dataset.user_ids[3]
    history = [dataset.item_ids[item] for item in dataset.inputs("test")[3]]
    history.append(dataset.item_ids[dataset.unsealed("test").targets("test")[3]])
    data = str(dataset.folder)
    (found,) = json.loads(call("--user", user, "--data", data, "--json"))
    assert (found["user"], found["history"]) == (user, history)
    (same,) = json.loads(call("--user", user, "--history", ",".join(history), "--json"))
    assert same == found
    assert "nobody: is no user of" in call("--user", "nobody", "--data", data, code=2)
    assert "nobody: was not trained on" in call("--user", "nobody", "--history", history[0], code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--history", "no-such"], "history 1: 'no-such': is unknown to this model"),
        (["--history", ","], "history 1: is empty"),
        ([], "needs --history"),
        (["--user", "u"], "needs --history"),
        (["--history", "a", "--title", "b"], "give one of"),
        (["--histories", "f", "--user", "u"], "column `user`"),
        (["--history", "a", "--out", "f.xlsx"], "must end in .csv"),
        (["--history", "a", "--out", "no/f.csv"], "folder that exists"),
        (["--histories", "no.csv"], "no.csv: cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_asked(call, arguments, words):
    assert words in call(*arguments, code=2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "items\nx\n", "no column `history`"),
        ("a.csv", "history\n", "holds no history"),
        ("a.jsonl", "{", "line 1: is no JSON"),
        ("a.jsonl", '{"history": [1]}', "line 1: `history` must be"),
        ("a.jsonl", '["x"]\n{"histori": []}', "line 2: `history` must be"),
        ("a.parquet", "PAR1", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(call, tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    assert words in call("--histories", tmp_path / name, code=2)


def test_it_needs_only_what_the_trainer_needs(finished, recommender, tmp_path):
    """Without the search's and the tracking's packages, as after requirements-recommend.txt."""
    guard = """
import sys
for name in ("ax", "botorch", "gpytorch", "cmaes", "faiss", "matplotlib", "mlflow", "onnx", "onnxruntime", "onnxscript",
             "optuna", "pandas", "psutil", "ray", "s3fs"):
    sys.modules[name] = None  # makes `import name` fail as if it were not installed
from darec_search.cli import main
codes = [main(["recommend", sys.argv[1], "--history", sys.argv[3], "--json"])]
codes += [main(["evaluate", sys.argv[1], sys.argv[2], "--json"])]
import darec_search.serve
sys.exit(max(codes))
"""
    item = recommender.item_ids[0]
    data = finished.study.folder.parent / "data"
    ran = subprocess.run(
        [sys.executable, "-c", guard, str(finished.model), str(data), item],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    decoder = json.JSONDecoder()
    recommended, end = decoder.raw_decode(ran.stdout)
    measured = decoder.raw_decode(ran.stdout[end:].lstrip())[0]
    assert [found["id"] for found in recommended[0]["items"]] == [i.id for i in recommender.recommend([[item]])[0]]
    assert measured["mrr"] == pytest.approx(recommender.card.metrics["test"]["mrr"], abs=1e-6)


def test_the_list_for_recommending_is_a_part_of_the_lock():
    root = Path(__file__).resolve().parents[2]
    lock, few = (
        [line for line in (root / name).read_text().splitlines() if line and not line.startswith("#")]
        for name in ("requirements.lock", "requirements-recommend.txt")
    )
    assert set(few) < set(lock)
    names = {line.split("==")[0].lower() for line in few}
    assert {"torch", "transformers", "pyarrow", "fastapi", "uvicorn"} <= names
    assert not names & {"ax-platform", "botorch", "mlflow", "mlflow-skinny", "optuna", "ray", "pandas"}
