"""report.html: right and readable at every stage of a study."""

import json
import re
from html.parser import HTMLParser

import pytest
from study_folders import ask, fail, final_run, finish, new_study, promote, search, whole_study

from darec_search.report import architecture_picture, write_report
from darec_search.report.facts import gather, headline, verdict
from darec_search.study import Study
from trainer.architecture import Architecture

VOID = {"meta", "br", "link", "img"}


class Balanced(HTMLParser):
    """Checks that every tag is closed, and collects text and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(study: Study) -> Balanced:
    parser = Balanced()
    parser.feed(write_report(study).read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def said(study: Study) -> str:
    facts = gather(study)
    return " ".join([headline(facts).text, *(sentence.text for sentence in verdict(facts))])


def test_a_whole_study_shows_everything_in_one_file(tmp_path):
    study = whole_study(tmp_path / "study")
    html = page(study)
    assert html.tags.count("svg") == 5
    for text in (
        "The search found the winner",
        "SPS",
        "Test split",
        "neighbours",
        "Re-tests",
        "Who ran when",
        "λ align",
    ):
        assert text in html.text
    assert f"darec-search recommend {study.folder}/best" in html.text
    source = (study.folder / "report.html").read_text()
    assert "<script" not in source
    assert not re.search(r"""(src|href)=["']?(https?:|//|/)""", source)
    assert "prefers-color-scheme: dark" in source
    names = {"best_so_far", "architecture", "retests", "weights", "timeline"}
    found = {file.name for file in (study.folder / "report").iterdir()}
    assert found == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}


def test_no_trial_yet(tmp_path):
    study = new_study(tmp_path / "study")
    html = page(study)
    assert "No trial has ended yet" in html.text
    assert f"darec-search run {study.folder}/study.yaml" in html.text
    assert "svg" not in html.tags


def test_only_failures(tmp_path):
    study = new_study(tmp_path / "study")
    for bit in (0, 1):
        fail(study, ask(study, (bit,) * 12, 0.1, "weights"), "out_of_memory", "needs 9 GiB, the lane has 8")
    html = page(study)
    assert "all 2 that ended failed" in html.text
    assert "needs 9 GiB" in html.text


def test_in_mid_search(tmp_path):
    study = new_study(tmp_path / "study")
    search(study, finished=5, failed=1)
    ask(study, (1,) * 12, 0.1, "architecture")
    html = page(study)
    assert "No winner yet" in html.text
    assert "7 trials so far: 5 finished, 1 out of memory, 1 pending" in html.text
    assert "The leading architecture" in html.text


def test_text_from_outside_is_escaped(tmp_path):
    study = new_study(tmp_path / "study")
    evil = "<script>alert('$x_1$ & you')</script>"
    fail(study, ask(study, (0,) * 12, 0.1, "weights"), "failed", evil)
    trial = finish(study, ask(study, (1,) * 12, 0.1, "weights"), 0.02, 1_790_000_000.0)
    result = trial.result.model_copy(update={"worker": "$\\bad{ <b>lane"})
    (trial.folder / "result.json").write_text(result.model_dump_json())
    html = page(Study.load(study.folder))
    assert "script" not in html.tags
    assert evil in html.text
    assert "$\\bad{ <b>lane" in html.text


@pytest.mark.parametrize("arm", ["serial", "parallel"])
def test_a_fixed_arm_that_wins_is_the_headline(tmp_path, arm):
    study = new_study(tmp_path / "study")
    search(study, finished=4, failed=0)
    promote(study, winner=arm, fixed=0.04, best=0.03)
    text = said(study)
    assert f"A fixed architecture won: all {arm}" in text
    assert "on best-1 (0.0300 ± 0.0005)" in text


def test_a_lead_within_the_noise_is_called_so(tmp_path):
    study = new_study(tmp_path / "study")
    search(study, finished=4, failed=0)
    promote(study, fixed=0.0305, best=0.0310)
    sentences = [sentence for sentence in verdict(gather(study)) if "on all parallel" in sentence.text]
    assert len(sentences) == 1
    assert sentences[0].text.startswith("That is +1.6 % on all parallel")
    assert "may be chance" in sentences[0].text
    assert sentences[0].tone == "plain"


def test_a_model_that_loses_to_counting_is_told_plainly(tmp_path):
    study = new_study(tmp_path / "study")
    search(study, finished=4, failed=0)
    promote(study)
    final_run(study, (0, 1) * 6, mrr=0.03, neighbours=0.04)
    text = said(study)
    assert "Neighbours, which needs no training, is better than the model: test MRR 0.0400 against 0.0300" in text
    assert "beats popularity (+100.0 %)" in text


def test_p_values_of_the_test_table_are_told(tmp_path):
    study = whole_study(tmp_path / "study")
    file = study.folder / "final" / "comparison.json"
    rows = json.loads(file.read_text())
    for row in rows:
        row["p_value"] = {"serial": 0.001, "parallel": 0.4}.get(row["name"])
    file.write_text(json.dumps(rows))
    text = said(study)
    assert "all serial (+11.1 %, p = 0.001)" in text
    assert "all parallel (+5.3 %, p = 0.4: may be chance)" in text


def test_a_candidate_whose_retests_all_failed_is_named(tmp_path):
    study = whole_study(tmp_path / "study")
    file = study.folder / "promotion.json"
    promotion = json.loads(file.read_text())
    promotion["candidates"][2] |= {"mean": None, "stderr": None, "values": []}
    promotion["candidates"][1] |= {"stderr": None}
    file.write_text(json.dumps(promotion))
    assert "No re-test of parallel finished." in said(study)
    assert "with one seed each" in said(study)
    page(study)


@pytest.mark.parametrize("layers", [1, 12, 48])
def test_an_architecture_can_be_drawn_at_any_depth(tmp_path, layers):
    architecture = Architecture.uniform(layers, "parallel")
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        architecture_picture(architecture, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count(">parallel<") == 3 * layers


def test_the_same_study_gives_the_same_page(tmp_path):
    study = whole_study(tmp_path / "study")
    first = write_report(study).read_text()
    assert write_report(Study.load(study.folder)).read_text() == first
