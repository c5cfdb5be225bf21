r"""Hard negatives (Appendix A of the paper): alike, yet never together.

N_j = (nearest items by text ∪ nearest items by matrix factorisation) \ items that share a user with j

Both searches are exact, by L2, over blocks of items. Everything comes from the item texts and the training part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from trainer.cache import cached
from trainer.config import NegativesConfig
from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged
from trainer.data.text import tfidf
from trainer.errors import BadInput

FEWEST = 5
"""Nearest items that are taken at least, by each distance."""

_TEXT_DIMENSION = 256
_BLOCK_DISTANCES = 2**22  # 32 MiB in float64
_NEVER = np.iinfo(np.int64).max
_ENCODER_BATCH = 64
_VERSION = 2
_FILE = "negatives.parquet"


def hard_negatives(dataset: Dataset, config: NegativesConfig, cache: Path) -> Ragged:
    """N_j of every item j, rising item indices; a row may be empty.

    Each distance gives the nearest ⌈fraction × items⌉. Where that is fewer than `FEWEST` (small catalogues, whose
    neighbours nearly all share a user), it gives the nearest `FEWEST` of those that share no user with j. An item
    without a training interaction has no factorisation vector, so only its text counts.

    Args:
        dataset: the (sub)set that is trained on; its held-out items are not read.
        config: encoder, fraction and rank.
        cache: root of `trainer.cache.cached`.

    Raises:
        BadInput: if the encoder cannot be loaded.
    """
    key = {
        "version": _VERSION,
        "data": dataset.training_digest(),
        "config": config.model_dump(mode="json"),
        "encoder": _encoder_digest(config.encoder),
    }
    folder = cached(cache, "negatives", key, lambda folder: _mine(dataset, config).save(folder / _FILE))
    return Ragged.load(folder / _FILE)


def _mine(dataset: Dataset, config: NegativesConfig) -> Ragged:
    bought = dataset.training_matrix()
    share_a_user = sparse.csr_matrix(bought.T @ bought)
    count = max(math.ceil(config.fraction * dataset.n_items), FEWEST)
    small = config.fraction * dataset.n_items < FEWEST

    by_text = nearest(text_vectors(dataset, config.encoder), count, share_a_user if small else None)
    trained = np.flatnonzero(bought.getnnz(axis=0))
    vectors = factorise(bought[:, trained], config.mf_dimension)
    rows = nearest(vectors, count, share_a_user[trained][:, trained] if small else None)
    by_factors = [np.empty(0, np.int64)] * dataset.n_items
    for item, row in zip(trained, rows, strict=True):
        by_factors[item] = trained[row]
    partners = np.split(share_a_user.indices, share_a_user.indptr[1:-1])
    return Ragged.from_rows(
        np.setdiff1d(np.union1d(text, factors), row)
        for text, factors, row in zip(by_text, by_factors, partners, strict=True)
    )


def nearest(
    vectors: NDArray[np.float64], count: int, forbidden: sparse.csr_matrix | None = None
) -> list[NDArray[np.int64]]:
    """Indices of the nearest other rows by L2, exactly, nearest first; the lower index first of equals.

    Equal distances are the rule, not the exception (counts of shared users), so distances count as equal within
    1.4e-9 of the longest squared length: rounding, which differs with the number of threads, must not choose.

    Args:
        vectors: [n, d].
        count: how many, at most n - 1.
        forbidden: [n, n]; pairs with a non-zero entry are passed over.

    Returns:
        n rows of `count` indices, fewer where too few are left.
    """
    n = len(vectors)
    count = min(count, n - 1)
    if count < 1:
        return [np.empty(0, np.int64)] * n
    vectors = vectors.astype(np.float64, copy=False)
    squares = np.einsum("nd,nd->n", vectors, vectors)
    # Irrational, so that no whole-number distance lies on the border of two steps.
    resolution = (squares.max() or 1.0) * math.sqrt(2) * 1e-9
    rows: list[NDArray[np.int64]] = []
    step = max(1, _BLOCK_DISTANCES // n)
    for start in range(0, n, step):
        block = np.arange(start, min(start + step, n))
        # |a - b|² without |a|², which is the same for a whole row.
        distances = squares - 2 * vectors[block] @ vectors.T
        ranked = np.rint(distances / resolution).astype(np.int64) * n + np.arange(n)
        ranked[np.arange(len(block)), block] = _NEVER
        if forbidden is not None:
            ranked[forbidden[block].nonzero()] = _NEVER
        found = np.argpartition(ranked, count - 1, axis=1)[:, :count]
        found_ranked = np.take_along_axis(ranked, found, 1)
        for items, keys in zip(found, found_ranked, strict=True):
            rising = np.argsort(keys)
            rows.append(items[rising][keys[rising] != _NEVER])
    return rows


def factorise(bought: sparse.csr_matrix, dimension: int) -> NDArray[np.float64]:
    """Item vectors of a truncated SVD of the user × item matrix, the best factorisation of its rank in squared error.

    The paper cites matrix factorisation (its reference 26) without a recipe; the SVD needs no learning rate or seed
    that would matter. Randomised algorithm of Halko, Martinsson, Tropp (SIAM Review 2011).

    Args:
        bought: [users, items], 0 or 1.
        dimension: wanted rank; at most the smaller side of the matrix is used.

    Returns:
        [items, rank] right singular vectors times singular values.
    """
    from sklearn.utils.extmath import randomized_svd  # dear to import, and a cached result does not need it

    rank = min(dimension, *bought.shape)
    _, values, vectors = randomized_svd(bought.astype(np.float64), rank, random_state=0)
    return np.ascontiguousarray((values[:, None] * vectors).T, np.float64)


def text_vectors(dataset: Dataset, encoder: str) -> NDArray[np.float64]:
    """Embeddings of the item sentences, [items, d]."""
    if encoder != "tfidf":
        return _encode(encoder, dataset.sentences)
    terms = tfidf(dataset.sentences)
    return _truncate(terms)


def _truncate(terms: sparse.csr_matrix) -> NDArray[np.float64]:
    """TF-IDF rows in the space of their leading singular vectors, [items, at most 256]."""
    from sklearn.utils.extmath import randomized_svd

    left, values, _ = randomized_svd(terms, min(_TEXT_DIMENSION, *terms.shape), random_state=0)
    return np.ascontiguousarray(left * values, np.float64)


def _encode(encoder: str, sentences: Sequence[str]) -> NDArray[np.float64]:
    """Mean of a Hugging Face encoder's last hidden states over the tokens of a sentence, [items, d]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model = AutoModel.from_pretrained(encoder, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(
            f"negatives.encoder {encoder!r}: cannot be loaded ({reason}); name `tfidf`, a folder with a Hugging Face "
            "encoder, or the id of one"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(sentences), _ENCODER_BATCH):
            batch = tokenizer(
                list(sentences[start : start + _ENCODER_BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append(((hidden * mask).sum(1) / mask.sum(1)).double().numpy())
    return np.concatenate(parts)


def _encoder_digest(encoder: str) -> str:
    """Identity of a local encoder's files, so that another model in the same folder is not taken for it."""
    folder = Path(encoder)
    if not folder.is_dir():
        return encoder
    digests = {}
    for path in sorted(file for file in folder.iterdir() if file.is_file()):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
