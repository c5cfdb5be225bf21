"""Item sentences and their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.data.ragged import Ragged

if TYPE_CHECKING:
    from scipy import sparse

FIRST_KEYS = ("title", "brand", "categories")
"""Attributes that lead a sentence, since `max_item_tokens` cuts its end; the others follow in their given order."""

_TEXTS_AT_A_TIME = 2**14
"""A tokenizer's own account of a text takes far more memory than its ids."""


def item_sentence(attributes: Mapping[str, str], order: Sequence[str] | None = None) -> str:
    """Flatten attributes to `key value key value …` (Section 2.1 of the paper).

    Keys are lower-case, runs of white space become one space, empty attributes are left out.

    Args:
        attributes: value by key.
        order: the keys that are wanted; all of them, `FIRST_KEYS` first, when absent.
    """
    values = {key.lower(): " ".join(value.split()) for key, value in attributes.items()}
    usual = [key for key in FIRST_KEYS if key in values] + [key for key in values if key not in FIRST_KEYS]
    ordered = usual if order is None else [key.lower() for key in order]
    return " ".join(f"{key} {values[key]}" for key in ordered if values[key])


def encode_items(tokenizer: Any, sentences: Sequence[str], max_item_tokens: int) -> Ragged:
    """Token ids of every item sentence, cut at the end to `max_item_tokens`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        sentences: [items].
        max_item_tokens: tokens that are kept.

    Returns:
        One row an item; no special tokens are added.
    """
    parts = []
    for start in range(0, len(sentences), _TEXTS_AT_A_TIME):
        texts = list(sentences[start : start + _TEXTS_AT_A_TIME])
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        parts.append(Ragged.from_rows(row[:max_item_tokens] for row in ids))
    return Ragged.join(parts)


def tfidf(texts: Sequence[str]) -> sparse.csr_matrix:
    """TF-IDF rows of unit length, [texts, terms]: 1- and 2-grams in at least two texts, sublinear counts.

    Without any such term the rows are zero.
    """
    from scipy import sparse  # both are dear to import, and not every run needs them
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return sparse.csr_matrix(TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform(texts))
    except ValueError:  # scikit-learn's way to say that the vocabulary is empty
        return sparse.csr_matrix((len(texts), 1))
