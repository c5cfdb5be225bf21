import json

import pytest
from layouts import copied, edit, histories, prepared

from trainer.data.prepare import prepare
from trainer.data.sources.clean import clean_brand, clean_list, clean_text, clean_title
from trainer.errors import BadInput


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Father&#39;s Day &amp; more", "Father's Day & more"),
        ("T<b>ea</b> <b>&amp;</b><br/>spice<!-- x -->", "Tea & spice"),
        ("&lt;p&gt;Oak&lt;/p&gt; tray", "Oak tray"),
        ("Holds &lt;half a gallon&gt;, < 2 kg, > 1 l", "Holds <half a gallon>, < 2 kg, > 1 l"),
        ('<div class="aplus"><style>.x{color:red}</style> Jar <script>var a = 1;</script>', "Jar"),
        ("two\n\n  lines\t", "two lines"),
        (["one", "<li>two</li>", None], "one two"),
        (None, ""),
        (3.0, "3"),
    ],
)
def test_text_is_words(raw, text):
    assert clean_text(raw) == text


@pytest.mark.parametrize(
    "title",
    [
        "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();",
        " .a-box { color: red }",
        "#nav-flyout-ewc .nav-flyout{width:250px}",
        "(function(d){var e=d.ue=d.ue||{}",
        "Kettle window.ue = new Date().getTime();",
        "<script>var a = 1;</script>",
    ],
)
def test_a_script_is_no_title(title):
    assert clean_title(title) == ""


@pytest.mark.parametrize("title", ["Var: a novel", ".5 inch bolt", "#10 screws", "Function of Beauty", "@media player"])
def test_these_are_titles(title):
    assert clean_title(title) == title


def test_brands_and_lists():
    brands = ("Visit Amazon's Aldo Page", "by\n    \n    Brix", "Elko\n", "By Far", None)
    assert [clean_brand(raw) for raw in brands] == ["Aldo", "Brix", "Elko", "By Far", ""]
    assert clean_list(["Kitchen", ["Storage &amp; more", "Kitchen"], "</span>"]) == "Kitchen Storage & more"


def test_sentences_and_counts(tmp_path):
    data = prepared("amazon", copied("amazon", tmp_path), tmp_path / "data", attributes="category,brand")
    assert data.item_ids == [f"B00000000{letter}" for letter in "ABCDE"]
    assert data.sentences[:3] == [
        "title Copper kettle brand Aldo categories Kitchen Kettles",
        "title Tea & spice tin brand Brix categories Kitchen Storage",
        "title Oak tray categories Kitchen Serving",
    ]
    manifest = data.manifest
    assert manifest.rules[0] == "Of 8 rows of metadata the 6 items with reviews were read."
    assert manifest.removed["items_without_title"] == 1
    assert manifest.removed["interactions"] == 4
    assert manifest.warnings == [
        "1 reviews went because their item has no metadata.",
        "1 rows of metadata went because their item stood there already; the first stayed.",
        "1 titles are no words but scripts, style sheets or HTML; their items count as untitled.",
        "1 of 4 users have equal times; there the order of the file was kept, and for 1 of them it decides which item "
        "is held out.",
    ]


def test_other_fields_by_option(tmp_path):
    data = prepared("amazon", copied("amazon", tmp_path), tmp_path / "data", attributes="description,price")
    assert list(data.attributes) == ["title", "description", "price"]
    assert data.sentences[0] == "title Copper kettle description Boils fast. Holds 2 l <half a gallon> price $19.99"
    assert data.attributes["description"][3] == "Weighs < 200 g"
    with pytest.raises(BadInput, match=r"attributes\.0: .*'brand', 'category'"):
        prepare("amazon", tmp_path / "amazon", tmp_path / "data", attributes="colour")


def test_repeats_and_ties(tmp_path):
    source = copied("amazon", tmp_path)
    assert histories(prepared("amazon", source, tmp_path / "first", duplicates="first"))["u3"] == "cdeab"
    assert histories(prepared("amazon", source, tmp_path / "last", duplicates="last"))["u3"] == "cdeba"
    lines = (source / "Kitchen_5.json").read_text().splitlines(keepends=True)
    (source / "Kitchen_5.json").write_text("".join(reversed(lines)))
    assert histories(prepared("amazon", source, tmp_path / "other"))["u4"] == "deacb"


def test_files_by_option(tmp_path):
    source = copied("amazon", tmp_path)
    expected = prepared("amazon", source, tmp_path / "expected")
    (source / "Kitchen_5.json").rename(source / "log.txt")
    (source / "meta_Kitchen.json").rename(tmp_path / "items.jsonl")
    named = {"reviews": "log.txt", "metadata": str(tmp_path / "items.jsonl")}
    assert prepared("amazon", source, tmp_path / "data", **named).fingerprint == expected.fingerprint
    (source / "a.json").touch()
    (source / "b.json").touch()
    with pytest.raises(BadInput, match=r"holds a.json and b.json; say which one by the option reviews"):
        prepare("amazon", source, tmp_path / "data", metadata="x")


REVIEW = {"reviewerID": "u9", "asin": "B00000000A", "unixReviewTime": 1}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("Kitchen_5", json.dumps(REVIEW | {"reviewerID": ""}), "Kitchen_5.json, line 27: has no reviewerID"),
        ("Kitchen_5", json.dumps(REVIEW | {"asin": None}), "Kitchen_5.json, line 27: has no asin"),
        ("Kitchen_5", json.dumps(REVIEW | {"unixReviewTime": "06 17, 2018"}), "line 27: has no number unixReviewTime"),
        ("Kitchen_5", "{'reviewerID': 'u9'}", "line 27: is not JSON .*double quotes"),
        ("meta_Kitchen", "{}", "meta_Kitchen.json, line 9: has no asin"),
        ("meta_Kitchen", "[1]", "meta_Kitchen.json, line 9: is no JSON object"),
    ],
)
def test_malformed_rows_are_named(tmp_path, name, line, message):
    source = copied("amazon", tmp_path)
    edit(source / f"{name}.json", lambda text: f"{text}{line}\n")
    with pytest.raises(BadInput, match=message):
        prepare("amazon", source, tmp_path / "data")


def test_files_of_two_categories(tmp_path):
    source = copied("amazon", tmp_path)
    edit(source / "meta_Kitchen.json", lambda text: text.replace("B0000", "A0000"))
    with pytest.raises(BadInput, match=r"meta_Kitchen.json: has none of the reviewed items"):
        prepare("amazon", source, tmp_path / "data")


def test_reviews_without_a_rating(tmp_path):
    source = copied("amazon", tmp_path)
    edit(source / "Kitchen_5.json", lambda text: text.replace("overall", "stars"))
    assert prepared("amazon", source, tmp_path / "data").manifest.interactions == 21
    with pytest.raises(BadInput, match="min_rating needs ratings"):
        prepare("amazon", source, tmp_path / "data", min_rating=3)


@pytest.mark.realdata
def test_gift_cards(realdata, tmp_path):
    facts = json.loads((realdata / "giftcards-raw" / "META.json").read_text())
    data = prepared("amazon", realdata / "giftcards-raw", tmp_path / "data")
    manifest = data.manifest
    assert (manifest.users, manifest.items, manifest.interactions) == (458, 148, 2972)
    assert manifest.rules[0] == f"Of {facts['n_meta_rows']} rows of metadata the 148 items with reviews were read."
    assert manifest.figures["repeats"] == facts["n_reviews"] - facts["n_user_item_pairs"]
    for percent in (0, 5, 25, 50, 75, 95, 100):
        quantile = manifest.figures[f"length_{percent}%"]
        assert quantile == facts["reviews_per_user_quantiles"][f"{percent / 100:g}"]
    assert manifest.warnings[0].startswith(f"{facts['traps']['users_with_equal_timestamps']} of 458 users have equal")
    assert manifest.source_files == facts["sha256"]
    assert not any(mark in sentence for sentence in data.sentences for mark in ("&amp;", "&#39;", "<b", "</", "\n"))
    again = prepared("amazon", realdata / "giftcards-raw", tmp_path / "again")
    assert again.fingerprint == data.fingerprint
    once = prepared("amazon", realdata / "giftcards-raw", tmp_path / "once", duplicates="last")
    assert once.manifest.interactions == facts["n_user_item_pairs"]
