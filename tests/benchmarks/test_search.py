"""The comparison of samplers: what is run, what is kept, and what is made of it."""

from __future__ import annotations

import json

import pytest
import search
import search_page
from peers import PEERS
from search import Run, Search, run_search
from search_report import Runs, Setting, _ahead, _depth_smooth, _noisy, _planted, report


def test_a_longer_search_goes_as_the_shorter_one_went():
    what = Search("labs", "random", "1", 3, 4, 0.3)
    short, long = list(run_search(what, 30)), list(run_search(what, 60))
    assert [run.n for run in long] == [30, 60]
    assert [run.regret for run in short] == [long[0].regret]


@pytest.mark.parametrize("name", ["ax_default", "botorch_ei", "botorch_nei", "native_tpe", "native_gp", "native_cmaes"])
def test_a_peer_searches_with_others_under_way(name):
    (run,) = run_search(Search("landscape_synthetic", name, "1", 0, 3, None), 13)
    assert 0 <= run.regret < 2


def test_what_was_run_is_not_run_again(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    arguments = ["--runs", str(path), "--problems", "smooth", "--samplers", "random", "--trials", "30", "--seeds"]
    search.main([*arguments, "1"])
    first = path.read_text()
    search.main([*arguments, "2"])
    search.main([*arguments, "2", "--report"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.read_text().startswith(first)
    assert [(line["seed"], line["n"], line["noise"]) for line in lines] == [(0, 30, 0.3), (1, 30, 0.3)]
    assert "0.3" in capsys.readouterr().out


def test_a_library_that_is_absent_is_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(search.LIBRARIES, "smac", "no-such-library")
    search.main(["--runs", str(tmp_path / "runs.jsonl"), "--samplers", "smac"])
    assert "smac: skipped" in capsys.readouterr().out
    assert set(PEERS) <= set(search.LIBRARIES)


def _runs(problem, noise, regrets, version="1"):
    """By sampler and seed."""
    return [
        Run(problem, sampler, version, seed, 1, noise, 30, regret, 0.1)
        for sampler, of_seeds in regrets.items()
        for seed, regret in enumerate(of_seeds)
    ]


def test_leads_are_paired_and_the_strongest_peer_decides():
    strong = [0.25, 0.35, 0.45, 0.55, 0.65]
    runs = Runs(_runs("smooth", 0.3, {"ax_bayes": [r - 0.15 for r in strong], "a": strong, "b": [0.9] * 5, "c": [0.0]}))
    (lead, *_) = runs.leads(Setting(0.3, 1, 30), "smooth").values()
    assert (lead.mean, lead.stderr) == (pytest.approx(0.15), pytest.approx(0, abs=1e-9))
    assert _ahead(runs, "smooth", "", 0.1).reached
    assert not _ahead(runs, "smooth", "", 0.2).reached
    ratio, missing = _depth_smooth(runs)
    assert not ratio.reached  # 0.30 is more than 0.6 × 0.45
    assert "of a" in ratio.found
    assert missing.reached is None


def test_only_the_last_version_of_a_sampler_counts():
    old, new = (_runs("nk", 1.2, {"ax_bayes": [r] * 5}, version) for r, version in ((0.9, "old"), (0.2, "new")))
    runs = Runs([*old, *_runs("nk", 1.2, {"a": [0.4] * 5}), *new])
    assert runs.versions["ax_bayes"] == "new"
    assert _noisy(runs).found == "lead +0.200 ± 0.000 over a on 1 problems"


def test_the_planted_best_counts_when_it_is_not_told_apart():
    found = {"ax_bayes": [0.0, 0.01, 0.0, 0.01, 0.0], "a": [0.0, 2.0, 2.0, 0.0, 0.0]}
    goal = _planted(Runs(_runs("landscape_synthetic", None, found)))
    assert goal.reached
    assert "1.00 against 0.60 of a" in goal.found


def test_the_report_is_kept_as_json(tmp_path):
    path = tmp_path / "search.json"
    report(_runs("few", 0.3, {"ax_bayes": [0.5] * 5, "random": [0.2]}), path)
    written = json.loads(path.read_text())
    assert [row["regret"] for row in written["runs"]] == [[0.5, 0.0, 5], [0.2, None, 1]]
    assert {goal["reached"] for goal in written["goals"]} == {None}


def test_the_page_is_made_of_the_report():
    document = json.loads((search_page.RESULTS / "search.json").read_text())
    shown = (search_page.DOCS / "search.md").read_text(encoding="utf-8")
    assert search_page.tables(document) in shown
    assert search_page.BEGIN in shown


def test_tables_show_the_best_and_the_seeds_that_differ(tmp_path):
    path = tmp_path / "search.json"
    runs = [*_runs("few", 0.3, {"ax_bayes": [0.5] * 5, "a": [0.2]}), *_runs("nk", 0.3, {"ax_bayes": [0.1, 0.3] * 3})]
    report([*runs, *_runs("landscape_synthetic", None, {"ax_bayes": [0.0] * 5})], path)
    made = search_page.tables(json.loads(path.read_text())).splitlines()
    assert "| ax_bayes | **0.20 ± 0.04** | 0.50 ± 0.00 (5) | 0.35 |" in made
    assert "| a |  | **0.20** (1) |  |" in made
    assert "| ax_bayes | **0.00 ± 0.00** | 1.00 |" in made
    search_page.draw(json.loads(path.read_text()), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
