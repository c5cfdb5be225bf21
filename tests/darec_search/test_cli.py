"""The command line's own doings; what it refuses stands in test_bad_input.py."""

import gzip
import json
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from tiny_studies import USERS, study_document, study_file

from darec_search import cli
from trainer.data.dataset import Dataset
from trainer.data.filters import FilterOptions
from trainer.data.sources import SOURCES


def run_json(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("darec-search: ")
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def home(finished):
    return finished.study.folder.parent


@pytest.fixture
def shop(tmp_path):
    """Raw files of format `table`; what is refused here is one change away."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "items.csv").write_text("id,title\n" + "".join(f"{item},thing {item}\n" for item in "abcd"))
    rows = [f"u{user},{'abcd'[(user + time) % 4]},{time}" for user in range(5) for time in range(5)]
    (folder / "interactions.csv").write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    return folder


@pytest.mark.parametrize("after", [True, False], ids=["source-first", "source-last"])
def test_options_of_a_format_may_stand_anywhere(capsys, tmp_path, shop, after):
    named = ["--min-user-interactions", "3", "--format", "table", "--out", str(tmp_path / "out")]
    arguments = [str(shop), *named] if after else [*named, str(shop)]
    assert cli.main(["data", "prepare", *arguments]) == 0
    capsys.readouterr()
    manifest = run_json(capsys, "data", "show", tmp_path / "out", "--json")
    assert manifest["options"]["min_user_interactions"] == 3
    assert {"users", "items", "interactions", "train_interactions", "fingerprint"} <= manifest.keys()


def test_a_format_without_a_source_takes_its_options_too(capsys, tmp_path):
    command = ["data", "prepare", "--users", "90", "--items", "80", "--format", "synthetic", "--out", tmp_path / "out"]
    assert cli.main([str(argument) for argument in command]) == 0
    capsys.readouterr()
    assert run_json(capsys, "data", "show", tmp_path / "out", "--json")["users"] == 90


def test_the_order_of_a_sentence_may_be_given(capsys, tmp_path):
    out = tmp_path / "out"
    named = ["--users", "90", "--items", "80", "--sentence", "brand, title"]
    assert cli.main(["data", "prepare", "--format", "synthetic", *named, "--out", str(out)]) == 0
    capsys.readouterr()
    assert run_json(capsys, "data", "show", out, "--json")["options"]["sentence"] == ["brand", "title"]
    sentences = Dataset.open(out).sentences
    assert all(sentence.startswith("brand ") and " title " in sentence for sentence in sentences)


@pytest.mark.parametrize("format", SOURCES)
def test_help_of_a_format_lists_its_options(capsys, format):
    assert cli.main(["data", "prepare", "--format", format, "-h"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for section in (SOURCES[format].options, FilterOptions):
        for name, field in section.model_fields.items():
            assert f"--{name.replace('_', '-')} " in shown
            assert " ".join(field.description.split()) in shown
    assert "--duplicates {keep,first,last}" in shown
    assert "--k-core N" in shown
    assert "--since VALUE" in shown


def test_help_without_a_format_names_them_all(capsys):
    assert cli.main(["data", "prepare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(format in shown for format in SOURCES)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["run"],
        ["run", "study.yaml", "--fast"],
        ["data", "prepare", "--format", "synthetic", "--out", "x", "--userz", "3"],
        ["data", "prepare", "--format", "synthetic"],
        ["data", "prepare", "--out", "x"],
        ["recommend", "model"],
        ["recommend", "model", "--history", "a", "--histories", "b"],
        ["recommend", "model", "--history", "a", "--top", "many"],
        ["evaluate", "model", "data", "--split", "train"],
    ],
    ids=" ".join,
)
def test_arguments_that_are_none_end_with_2(capsys, arguments):
    try:
        code = cli.main(arguments)
    except SystemExit as error:  # argparse ends the process by itself
        code = error.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["-v", "check", "{}"], ["check", "-v", "{}"], ["check", "{}", "--verbose"]])
def test_verbose_may_stand_anywhere(capsys, home, tmp_path, command):
    file = study_file(tmp_path, output=str(tmp_path / "other"), data={"path": str(home / "data")})
    assert cli.main([argument.format(file) for argument in command]) == 0


def test_a_dry_run_times_real_steps_and_leaves_no_study(capsys, home, tmp_path):
    sections = {
        "output": str(tmp_path / "other"), "data": {"path": str(home / "data")}, "cache": str(home / "cache"),
        "budget": {"hours": 1e-6, "price_per_hour": 4, "currency": "EUR"}, "optimization": {"patience": 1},
    }  # fmt: skip
    file = study_file(tmp_path, **sections)
    before = {path for path in home.rglob("*") if path.is_file()}
    estimate = run_json(capsys, "run", file, "--dry-run", "--json")["estimate"]
    probe = estimate["probe"]
    assert 0 < probe["step_s"]["low"] <= probe["step_s"]["middle"] <= probe["step_s"]["high"]
    assert min(probe["evaluation_s"], probe["begin_s"], probe["checkpoint_bytes"], probe["model_bytes"]) > 0
    assert probe["steps_per_epoch"] == 4  # 54 users by 16
    assert probe["memory_bytes"]["high"] > 1e8
    assert [(stage["name"], stage["trainings"]) for stage in estimate["stages"]] == [
        ("search for λ", [2, 2]), ("search for bits", [3, 3]), ("re-tests", [4, 8]),
        ("arms on all users", [2, 3]), ("winner on all users", [1, 1]),
    ]  # fmt: skip
    for name in ("hours", "wall_hours", "disk_bytes", "cost"):
        assert 0 < estimate[name]["low"] < estimate[name]["middle"] < estimate[name]["high"]
    assert estimate["cost"]["high"] == pytest.approx(4 * estimate["hours"]["high"])
    assert cli.main(["run", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "CPU-hours" in said
    assert "EUR" in said
    assert "budget.hours, 1e-06 CPU-hours, ends the search or the re-tests early" in said
    assert "s on cpu, 1 thread(s)" in said
    assert not (tmp_path / "other").exists()
    assert {path for path in home.rglob("*") if path.is_file()} == before


def test_check_says_what_would_run_and_writes_no_study(capsys, home, tmp_path):
    file = study_file(tmp_path, output=str(tmp_path / "other"), data={"path": str(home / "data")})
    plan = run_json(capsys, "check", file, "--json", "--set", "search.trials=9")
    assert (plan["search_trials"], plan["users"], plan["folder"]) == (9, USERS, str(tmp_path / "other"))
    assert cli.main(["run", str(file), "--dry-run", "--no-timing"]) == 0
    said = capsys.readouterr().out
    assert "2 trials for λ, in a grid, at the architecture serial" in said
    assert "3 trials proposed by random" in said
    cheaper = ["--set", "search.sampler=ax_bayes", "--set", "search.fidelities=[{users_fraction: 0.3}]"]
    assert cli.main(["check", str(file), *cheaper]) == 0
    assert f"on {round(0.3 * USERS)} users count 0.50 of a trial" in capsys.readouterr().out
    assert not (tmp_path / "other").exists()


def test_check_says_what_a_search_starts_from(capsys, home, finished, tmp_path):
    """The finished study's data at another learning rate, then as it was."""
    sections = {"output": str(tmp_path / "new"), "data": {"path": str(home / "data")}}
    old = str(finished.study.folder)
    search = {"sampler": "ax_bayes", "warm_start": [old]}
    same = study_file(tmp_path / "same", **sections, search=search)
    (use,) = run_json(capsys, "check", same, "--json")["warm_start"]
    assert (use["folder"], use["related"], use["differs"]) == (old, 0, [])
    assert use["results"] >= 3
    assert cli.main(["check", str(same)]) == 0
    assert f"starting from {old}: {use['results']} trials as results" in " ".join(capsys.readouterr().out.split())
    other = ["--set", "optimization.learning_rate=0.5"]
    assert "learns from the same task only" in refused(capsys, "check", same, *other, "--set", "search.sampler=random")
    said = refused(capsys, "check", same, "--set", f"search.warm_start=[{tmp_path}]")
    assert f"search.warm_start: {tmp_path}: is no study folder" in said
    assert not (tmp_path / "new").exists()


def test_status_for_machines_and_people(capsys, home, finished):
    status = run_json(capsys, "status", home / "study", "--json")
    assert len(status["trials"]) == len(finished.study.trials())
    keys = {"id", "status", "bits", "weights", "seed", "fidelity", "arm", "objective"}
    assert all(keys <= trial.keys() for trial in status["trials"])
    assert status["best"].keys() == {"bits", "weights", "mean", "interval"}
    final = finished.study.final_result().cost.cpu_s
    spent = sum(trial.result.cost.cpu_s for trial in finished.study.trials()) + final
    assert (status["gpu_hours"], status["cpu_hours"]) == (0, pytest.approx(spent / 3600))
    assert cli.main(["status", str(home / "study")]) == 0
    assert finished.study.trials()[0].spec.id[:6] in capsys.readouterr().out


def test_recommend_and_evaluate(capsys, home, finished, tmp_path):
    items = Dataset.open(home / "data").item_ids
    file = tmp_path / "histories.txt"
    file.write_text(f"{items[0]}\n\n{items[1]}, {items[2]}\n")
    found = run_json(capsys, "recommend", finished.model, "--histories", file, "--top", "3", "--json")
    assert [entry["history"] for entry in found] == [[items[0]], [items[1], items[2]]]
    assert all(len(entry["items"]) == 3 for entry in found)
    assert all(item.keys() == {"id", "title", "score"} for item in found[0]["items"])
    recorded = json.loads((home / "study" / "final" / "metrics.json").read_text())
    measured = run_json(capsys, "evaluate", finished.model, home / "data", "--json")
    assert recorded.keys() == {"split", "users", "mrr", "recall@10", "ndcg@10"}
    assert {name: measured[name] for name in recorded} == pytest.approx(recorded, abs=1e-6)
    assert cli.main(["evaluate", str(finished.model), str(home / "data"), "--cutoffs", "1,5"]) == 0
    printed = capsys.readouterr().out
    assert f"test, {USERS} users: MRR {recorded['mrr']:.4f}" in printed
    assert "a cold target" in printed


def test_histories_that_cannot_be_read(capsys, finished, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, words in (("empty.txt", "holds no history"), ("binary.txt", "cannot be read"), ("no.txt", "no.txt")):
        assert words in refused(capsys, "recommend", finished.model, "--histories", tmp_path / name)
    assert "--top 0" in refused(capsys, "recommend", finished.model, "--history", "a", "--top", "0")
    assert "unknown to this model" in refused(capsys, "recommend", finished.model, "--history", "no-such")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("items.csv", None, "has no items file"),
        ("items.csv", b"", "items.csv: is empty"),
        ("items.csv", b"id,title\na,\xff\n", "items.csv, line 2: is not UTF-8"),
        ("interactions.jsonl", b'{"user": "u1", "item": "a", "timestamp": 1}\n{"user": \n', "line 2: is not JSON"),
        ("interactions.parquet", b"PAR1 but not really", "interactions.parquet: cannot be read"),
        ("interactions.csv.gz", gzip.compress(b"user,item,timestamp\nu,a,1\n")[:-9], "cannot be read"),
        ("interactions.csv", b"user,item,timestamp\nu1,a,yesterday\n", "line 2: 'yesterday'"),
    ],
    ids=["absent", "empty", "not-text", "not-json", "not-parquet", "cut-off", "no-time"],
)
def test_files_that_cannot_be_read(capsys, tmp_path, shop, name, content, words):
    for file in shop.glob(f"{name.split('.')[0]}.*"):
        file.unlink()
    if content is not None:
        (shop / name).write_bytes(content)
    sentence = refused(capsys, "data", "prepare", shop, "--format", "table", "--out", tmp_path / "out")
    assert words in sentence
    assert not (tmp_path / "out").exists()


def test_a_recipe_in_a_study_file_is_refused_before_any_training(capsys, tmp_path, shop):
    (shop / "items.csv").write_text("id,title\na,thing\na,thing again\n")
    prepare = {"format": "table", "source": str(shop)}
    document = study_document(tmp_path)
    document["data"]["prepare"] = prepare
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(document))
    assert "item id 'a' stands already at" in refused(capsys, "run", file)
    assert not (tmp_path / "study").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:9", "no Ray cluster answers"), ("ray://127.0.0.1:9", "Ray Client"), ("nowhere", "host:port")],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_ray_address_is_tried_first_and_briefly(capsys, home, tmp_path, command, address, words):
    sections = {"resources": {"runner": "ray"}, "data": {"path": str(home / "data")}}
    file = study_file(tmp_path, cache=str(tmp_path / "cache"), output=str(tmp_path / "other"), **sections)
    started = time.monotonic()
    sentence = refused(capsys, command, file, "--address", address)
    assert time.monotonic() - started < 15
    assert address in sentence
    assert words in sentence
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "cache").exists()


def test_train_goes_on_only_with_its_own_run(capsys, home, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(json.loads((home / "study" / "final" / "run.json").read_text())))
    command = ["train", str(file), "--out", str(tmp_path / "out"), "--set", "optimization.epochs=1"]
    assert cli.main(command) == 0
    assert "epoch 1: loss" in capsys.readouterr().out
    before = (tmp_path / "out" / "result.json").read_bytes()
    assert cli.main(command) == 0
    assert "epoch" not in capsys.readouterr().out
    assert (tmp_path / "out" / "result.json").read_bytes() == before
    assert "another config" in refused(capsys, *command[:-1], "optimization.epochs=2")
    assert "something else" in refused(capsys, "train", file, "--out", home)
    assert "something else" in refused(capsys, "train", file, "--out", file)
    assert "optimization.epochs" in refused(capsys, *command[:-1], "optimization.epochs=many")


@pytest.mark.slow
def test_an_mlflow_that_does_not_answer_is_warned_of_without_its_password(capsys, home, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_PASSWORD", "s3cret")
    shutil.copytree(home / "study", tmp_path / "study")
    tracking = {"uri": "http://me:${PLANTED_PASSWORD}@127.0.0.1:9"}
    document = {**study_document(home), "output": str(tmp_path / "study"), "tracking": tracking}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(document))
    assert cli.main(["run", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "darec-search sync" in out + err
    assert "s3cret" not in out + err
    assert "s3cret" not in refused(capsys, "sync", tmp_path / "study")
    assert cli.main(["sync", str(tmp_path / "study"), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 0
    assert " new, " in capsys.readouterr().out


def test_a_run_ends_with_the_verdict_and_a_recommendation_in_titles(capsys, home, finished):
    file = home / "again.yaml"
    file.write_text(yaml.safe_dump({**study_document(home), "tracking": {"enabled": False}}))
    assert cli.main(["run", str(file)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("search: 5 runs, 5 done before", "Winner:", "The winner:", "it recommends", str(finished.model)):
        assert words in out


def test_light_commands_do_not_load_ray_ax_or_torch(home):
    script = "import sys; from darec_search.cli import main; assert main(sys.argv[1:]) == 0;"
    script += "print([name for name in ('ray', 'ax', 'mlflow', 'torch', 'transformers') if name in sys.modules])"
    for command in (["data", "show", str(home / "data")], ["status", str(home / "study")]):
        ran = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "[]", command
