import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trainer.data.text import encode_items, item_sentence, tfidf


def test_title_brand_categories_lead_and_the_rest_follows_in_its_order():
    attributes = {"Year": "1999", "categories": "Tools", "color": "red", "brand": "Acme", "title": "Saw"}
    assert item_sentence(attributes) == "title Saw brand Acme categories Tools year 1999 color red"


def test_a_sentence_holds_what_is_asked_for_in_that_order():
    attributes = {"title": "Saw", "brand": "Acme", "Year": "1999"}
    assert item_sentence(attributes, ["Year", "title"]) == "year 1999 title Saw"


def test_empty_attributes_are_left_out_and_white_space_is_one_space():
    assert item_sentence({"title": "  Big\n\t saw ", "brand": " ", "categories": ""}) == "title Big saw"


@pytest.fixture
def tokenizer():
    words = ["<s>", "</s>", "<unk>", "title", "big", "saw"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_tokens_are_cut_at_the_end_and_no_special_ones_are_added(tokenizer):
    assert tokenizer("saw")["input_ids"] == [0, 5, 1]
    tokens = encode_items(tokenizer, ["title big saw", "saw"], max_item_tokens=2)
    assert [row.tolist() for row in tokens] == [[3, 4], [5]]


def test_tokenizing_by_parts_changes_nothing(tokenizer, monkeypatch):
    sentences = ["title big saw", "", "saw", "big saw", "title"]
    expected = encode_items(tokenizer, sentences, 2)
    monkeypatch.setattr("trainer.data.text._TEXTS_AT_A_TIME", 2)
    assert [row.tolist() for row in encode_items(tokenizer, sentences, 2)] == [row.tolist() for row in expected]


def test_no_items_are_no_rows(tokenizer):
    assert len(encode_items(tokenizer, [], 4)) == 0


def test_tfidf_rows_have_unit_length_and_a_text_without_shared_terms_is_zero():
    rows = tfidf(["red saw", "red saw", "lonely"])
    assert rows.multiply(rows).sum(1).ravel().tolist()[0] == pytest.approx([1, 1, 0])


def test_tfidf_of_texts_that_share_nothing_is_zero():
    assert tfidf(["one", "two"]).nnz == 0
