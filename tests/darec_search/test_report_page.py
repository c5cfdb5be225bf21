"""report.html: right and readable at every stage of a study."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import find_browser, visit
from study_folders import LEVELS, START, ask, fail, final_run, finish, new_study, promote, search, whole_study

from darec_search.insight import Interaction, read_insight, write_insight
from darec_search.report import architecture_picture, write_report
from darec_search.report.facts import gather, headline, verdict
from darec_search.report.tables import interactions
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
    return parsed(write_report(study))


def parsed(path: Path) -> Balanced:
    parser = Balanced()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def said(study: Study) -> str:
    facts = gather(study)
    return " ".join([headline(facts).text, *(sentence.text for sentence in verdict(facts))])


def test_a_whole_study_shows_everything_in_one_file(tmp_path):
    study = whole_study(tmp_path / "study")
    html = page(study)
    assert html.tags.count("svg") == 6
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
    names = {"best_so_far", "architecture", "retests", "weights", "cost", "timeline"}
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


def test_architectures_are_compared_without_the_prior_of_the_final_model(tmp_path):
    study = whole_study(tmp_path / "study")
    file = study.folder / "final" / "comparison.json"
    winner, *others = json.loads(file.read_text())
    design = {**winner, "name": "best-1", "mrr": 0.028, "p_value": 0.002}
    for row in others:
        row["p_value"] = 1e-9
        row |= {"serial": {"p_value_design": 0.03}, "parallel": {"p_value_design": 0.3}}.get(row["name"], {})
    file.write_text(json.dumps([winner, design, *others]))
    text = said(study)
    assert "Without the prior from counts its design has a test MRR of 0.0280: the prior's gain is +7.1 %" in text
    assert "Its design without the prior beats all serial (+3.7 %, p = 0.03)." in text
    assert "all parallel is at least as good as its design without the prior: test MRR 0.0285 against 0.0280" in text
    assert "The winner beats popularity (+100.0 %, p = 1e-09)" in text
    assert "best-1, no prior" in write_report(study).read_text()
    file.write_text(json.dumps([{**winner, "prior": True}, *others]))  # the training without the prior failed
    assert "all serial (" not in said(study).partition("On the test split")[2]


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


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A whole study, λ tried again at its best architecture, with what mattered and how sure the promotion is."""
    study = whole_study(tmp_path_factory.mktemp("told") / "study", finished=16)
    for align in LEVELS:
        finish(study, ask(study, (0, 1) * 6, align, "weights", seed=50), 0.03 + 0.001 * align, START + 300)
    write_insight(study)
    file = study.folder / "promotion.json"
    promotion = json.loads(file.read_text())
    for entry in promotion["candidates"]:
        entry |= {"estimate": entry["mean"] - 0.0001, "interval": [entry["mean"] - 0.002, entry["mean"] + 0.002]}
    promotion |= {
        "value": {"mean": 0.0309, "low": 0.0289, "high": 0.0329},
        "confidence": 0.83,
        "as_good": {"serial": 0.004, "parallel": 0.16},
        "overstatement": {"winner": 0.0041, "luckiest": None},
        "spent": 6,
    }
    file.write_text(json.dumps(promotion))
    (study.folder / "audit.json").write_text(
        json.dumps({"pairs": [{}] * 8, "advice": "The search's part of the data orders designs much as all data do."})
    )
    write_report(study)
    return study


def test_what_mattered_and_how_sure_the_promotion_is(told):
    html = parsed(told.folder / "report.html")
    assert html.tags.count("svg") == 7
    for text in (
        "What mattered: adapters",
        "What mattered: loss weights",
        "66 pairs of adapters",
        "all serial",
        "SPS-PSP-SPS-PSP",
        "How the band of random search is computed",
        "The winner is worth 0.0309 (90 % interval 0.0289 to 0.0329).",
        "best of all that were tested again: 83 %.",
        "score of the winner was 0.0041 too high",
        "6 trainings were spent",
        "< 1 %",
        "8 designs were trained on the search's part of the data and on all of it. The search's part",
    ):
        assert text in html.text, text


def test_every_picture_is_a_whole_svg_with_a_name_and_asks_the_network_for_nothing(told):
    source = (told.folder / "report.html").read_text()
    drawn = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert len(drawn) == 7
    for svg in drawn:
        root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 10
        assert len(list(root.iter())) > 20
    for file in (told.folder / "report").glob("*.svg"):
        ElementTree.parse(file)
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(https?:|//)|url\(["']?(https?:|//)|@import""", source)
    # Every colour of a picture is a variable, so that dark pages have dark pictures.
    assert not [svg for svg in drawn if re.search(r"#[0-9a-f]{6}", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", svg))]


def test_levels_of_a_loss_weight_at_two_architectures_are_two_curves(told):
    curves = {curve.architecture: curve.levels for curve in read_insight(told.folder).weights}
    assert set(curves) == {"SSS-SSS-SSS-SSS", "SPS-PSP-SPS-PSP"}
    for levels in curves.values():
        assert [level.trials >= 1 for level in levels] == [True] * 3
        assert sum(level.mean for level in levels) == pytest.approx(0, abs=0.002)


def test_clear_interactions_are_told_in_words(told):
    pair = Interaction(first="L0 causal", second="L1 context", mean=0.0042, low=0.001, high=0.008)
    insight = read_insight(told.folder).model_copy(update={"interactions": (pair,)})
    text = re.sub("<.*?>", "", interactions(insight))
    assert text.startswith("One interaction is clear among 66 pairs of adapters")
    assert "L0 causal being parallel is worth +4.2 more where L1 context is parallel too (+1.0 to +8.0)." in text
    eight = insight.model_copy(update={"interactions": (pair,) * 8})
    assert "The 6 largest" in interactions(eight)


LOOK = """({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  ground: getComputedStyle(document.body).backgroundColor,
  text: getComputedStyle(document.querySelector('svg text')).fill,
  pictures: [...document.querySelectorAll('svg')].map(svg => {
    const box = svg.getBoundingClientRect();
    const shapes = [...svg.querySelectorAll('path, use, text')].filter(s => s.getBoundingClientRect().width > 0);
    const outside = [...svg.querySelectorAll('text')].filter(t => {
      const b = t.getBoundingClientRect(); return b.left < box.left - 2 || b.right > box.right + 2;});
    return {width: box.width, height: box.height, shapes: shapes.length, outside: outside.map(t => t.textContent)};
  }),
})"""


def test_in_a_browser_every_picture_is_drawn_on_desk_and_phone_in_light_and_dark(told):
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium or Chrome: install one, or name it by DAREC_SEARCH_BROWSER")
    sizes = ((1200, 900), (360, 740))
    views = [{"width": w, "height": h, "dark": dark} for w, h in sizes for dark in (False, True)]
    seen = visit(browser, told.folder / "report.html", views, LOOK)
    for view, found in zip(views, seen, strict=True):
        assert found["console"] == []
        assert found["overflow"] <= 0, view
        assert len(found["pictures"]) == 7
        for picture in found["pictures"]:
            assert picture["width"] > 280
            assert picture["height"] > 60
            assert picture["shapes"] > 10
            assert picture["outside"] == []
    light, dark = seen[:2]
    assert light["ground"] != dark["ground"]
    assert light["text"] != dark["text"]


def test_the_same_study_gives_the_same_page(tmp_path):
    study = whole_study(tmp_path / "study")
    first = write_report(study).read_text()
    assert write_report(Study.load(study.folder)).read_text() == first
