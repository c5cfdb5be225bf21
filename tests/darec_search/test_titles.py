import pytest

from darec_search.titles import Items, folded
from trainer.errors import BadInput

ITEMS = Items(["a", "b", "c", "d", "e"], ["Black Star Pruner", "Café Mug", "red tripod", "Red Tripod!", "red tripod"])


@pytest.mark.parametrize(
    ("name", "found"),
    [("a", "a"), ("Black Star Pruner", "a"), ("black  star-PRUNER", "a"), ("cafe mug", "b"), ("Red Tripod!", "d")],
)
def test_by_id_then_title_then_folded_title(name, found):
    assert ITEMS.id_of(name) == found


def test_folding():
    assert folded("  Ünder_score — Ｆull ") == "under score full"


def test_unknown_titles_get_the_nearest():
    with pytest.raises(
        BadInput, match=r"'blak star pruner': is unknown to this model, .* nearest: 'Black Star Pruner' \(id a\); "
    ):
        ITEMS.id_of("blak star pruner")


@pytest.mark.parametrize(("name", "ids"), [("red tripod", "c, e"), ("RED TRIPOD", "c, d, e")])
def test_ambiguous_titles_list_their_ids(name, ids):
    with pytest.raises(BadInput, match=rf"'{name}': \d items are called so \(ids {ids}\)"):
        ITEMS.id_of(name)


def test_an_item_without_a_title_is_found_by_its_id_alone():
    items = Items(["x", "y"], ["", "Y"])
    assert items.id_of("x") == "x"
    with pytest.raises(BadInput, match="unknown"):
        items.id_of("")
