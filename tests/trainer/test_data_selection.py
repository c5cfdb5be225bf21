from datetime import date, datetime

import pytest
from shops import ITEMS, write_shop

from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare, resolve_options
from trainer.errors import BadInput

DAY = 86_400
START = 1_514_764_800  # 2018-01-01 UTC
HISTORIES = {"u1": "abcdab", "u2": "bcdabc", "u3": "cdabcd"}
"""One interaction a day, rated 5, 4, 3, 5, 4, 3; three users."""


def rows(unit: int = 1) -> list[dict]:
    return [
        {"user": user, "item": item, "time": (START + day * DAY) * unit, "stars": 5 - day % 3}
        for user, items in HISTORIES.items()
        for day, item in enumerate(items)
    ]


def histories(folder, log, **options) -> tuple[list[str], Dataset]:
    least = {"min_item_interactions": 1, "min_user_interactions": 3}
    prepare("table", write_shop(folder / "raw", interactions=log), folder / "data", **least, **options)
    data = Dataset.open(folder / "data")
    test = data.open_test()
    found = [[*data.train[user], data.validation[user], test[user]] for user in range(data.n_users)]
    return ["".join(data.item_ids[item] for item in items) for items in found], data


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("2018-01-02", "2018-01-06"),
        (date(2018, 1, 2), datetime(2018, 1, 6)),
        ("2018-01-02T01:00+01:00", "2018-01-05T00:00:01"),
    ],
)
def test_dates_meet_the_unit_of_the_source(tmp_path, unit, since, until):
    found, data = histories(tmp_path, rows(unit), since=since, until=until)
    assert found == ["bcda", "cdab", "dabc"]
    assert data.manifest.removed["interactions_before_since"] == 3
    assert data.manifest.removed["interactions_from_until_on"] == 3
    assert data.manifest.removed["interactions"] == 6
    assert any(rule.startswith("Interactions before 2018-01-02") for rule in data.manifest.rules)


def test_numbers_are_in_the_source_s_unit(tmp_path):
    log = [row | {"time": (row["time"] - START) // DAY} for row in rows()]
    assert histories(tmp_path, log, since="1", until=5)[0] == ["bcda", "cdab", "dabc"]


def test_low_and_missing_ratings_go(tmp_path):
    log = rows()
    log[0]["stars"] = ""
    found, data = histories(tmp_path, log, min_rating="4")
    assert found == ["bda", "bcab", "cdbc"]
    assert data.manifest.removed["interactions_without_rating"] == 1
    assert data.manifest.removed["interactions_rated_too_low"] == 6
    assert "Interactions rated below 4 went." in data.manifest.rules


def test_a_rating_is_compared_as_it_is_written(tmp_path):
    """4.1 has no exact binary form, and single and double precision round it differently."""
    log = [row | {"stars": 4.1} for row in rows()]
    assert histories(tmp_path, log, min_rating=4.1)[1].manifest.interactions == 18


@pytest.mark.parametrize(("stays", "expected"), [("first", ["abcd", "bcda"]), ("last", ["cdab", "dabc"])])
def test_repeats_by_option(tmp_path, stays, expected):
    found, data = histories(tmp_path, rows(), duplicates=stays)
    assert found[:2] == expected
    assert data.manifest.removed["repeated_interactions"] == 6
    assert data.manifest.figures["repeats"] == 0
    assert f"Of a user's interactions with one item only the {stays} stayed." in data.manifest.rules
    assert not any(rule.startswith("Repeated") for rule in data.manifest.rules)


def test_equal_times_keep_the_order_of_the_file_among_repeats(tmp_path):
    log = [{"user": user, "item": item, "time": 7} for user in "xy" for item in "abacd"]
    assert histories(tmp_path, log, duplicates="last")[0] == ["bacd", "bacd"]


def test_repeats_are_those_that_the_other_rules_leave(tmp_path):
    assert histories(tmp_path, rows(), duplicates="first", since="2018-01-02")[0] == ["bcda", "cdab", "dabc"]


def test_shorthands_are_the_thresholds(tmp_path):
    assert resolve_options("table", {"k_core": "5"}) == resolve_options(
        "table", {"min_item_interactions": 5, "min_user_interactions": 5}
    )
    assert resolve_options("table", {"min_length": 6}) == resolve_options("table", {"min_user_interactions": 6})
    assert resolve_options("table", {"since": "2018-01-01", "duplicates": "keep"}) == resolve_options(
        "table", {"since": date(2018, 1, 1)}
    )


def test_the_manifest_of_a_plain_table_names_no_filter_that_was_not_asked_for(tmp_path):
    log = [{key: row[key] for key in ("user", "item", "time")} for row in rows()]
    manifest = histories(tmp_path, log)[1].manifest
    assert set(manifest.options) == {"file_order", "unknown_items", "min_item_interactions", "min_user_interactions"}
    assert not any(name.startswith(("interactions_", "repeated")) for name in manifest.removed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_core": 5, "min_item_interactions": 5}, "k_core says min_item.* leave out min_item_interactions"),
        ({"k_core": 5, "min_length": 5}, "leave out min_length"),
        ({"min_length": 5, "min_user_interactions": 5}, "min_length says min_user_interactions; leave out"),
        ({"k_core": 2}, "min_user_interactions: .* greater than or equal to 3, got 2"),
        ({"since": "soon"}, "since: must be an ISO date such as .* got 'soon'"),
        ({"until": True}, "until: must be an ISO date"),
        ({"until": "nan"}, "until: must be an ISO date"),
        ({"since": 2018}, "since 2018: is a number in the unit of the source's times; write 2018-01-01"),
        ({"duplicates": "most"}, "duplicates: .*got 'most'"),
        ({"min_rating": "good"}, "min_rating: .*got 'good'"),
        ({"rating": "score"}, r"no column 'score' \(option rating\)"),
        ({"since": "2019-01-01"}, "are left .* after 18 interactions before since, 0 items without a title"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        prepare("table", write_shop(tmp_path / "raw", interactions=rows()), tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


def test_what_a_source_lacks_cannot_be_asked_for(tmp_path):
    log = [{"user": "u", "item": item["id"], "order": place} for place, item in enumerate(ITEMS)]
    source = write_shop(tmp_path / "raw", interactions=log)
    for options, message in [
        ({"min_rating": 3}, "min_rating needs ratings, and this source has none"),
        ({"since": "2018-01-01"}, "since 2018-01-01: the source's times end at 3, which is no date in Unix seconds"),
        ({"since": 1, "file_order": True}, "since needs times, and this source has an order only"),
    ]:
        with pytest.raises(BadInput, match=message):
            prepare("table", source, tmp_path / "data", **options)
