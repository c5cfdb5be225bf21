"""Vectors whose distances say how alike items are: by text, and by who has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from trainer.data.text import tfidf
from trainer.errors import BadInput

_TEXT_DIMENSION = 256
_ENCODER_BATCH = 64


def factorise(bought: sparse.csr_matrix, dimension: int, dtype: type[np.floating] = np.float64) -> NDArray[np.floating]:
    """Item vectors of a truncated SVD of the user × item matrix, the best factorisation of its rank in squared error.

    The paper cites matrix factorisation (its reference 26) without a recipe; the SVD needs no learning rate or seed
    that would matter. Randomised algorithm of Halko, Martinsson, Tropp (SIAM Review 2011).

    Args:
        bought: [users, items], 0 or 1.
        dimension: wanted rank; at most the smaller side of the matrix is used.
        dtype: of the computation; a few times rank × (users + items) numbers of it are held.

    Returns:
        [items, rank] right singular vectors times singular values.
    """
    from sklearn.utils.extmath import randomized_svd  # dear to import, and a cached result does not need it

    rank = min(dimension, *bought.shape)
    _, values, vectors = randomized_svd(bought.astype(dtype), rank, random_state=0)
    return np.ascontiguousarray((values[:, None] * vectors).T, dtype)


def text_vectors(
    sentences: Sequence[str],
    encoder: str,
    device: str = "cpu",
    dimension: int = _TEXT_DIMENSION,
    dtype: type[np.floating] = np.float64,
    *,
    pooling: Literal["mean", "cls"] = "mean",
    field: str = "negatives.encoder",
) -> NDArray[np.floating]:
    """Embeddings of the item sentences, [items, d].

    Args:
        sentences: [items].
        encoder: `tfidf`, or a Hugging Face encoder by folder or id.
        device: where an encoder computes.
        dimension: rank to which TF-IDF rows are cut, at most.
        dtype: in which they are.
        pooling: of an encoder's last states: their mean over the tokens, or the first one's.
        field: of the config that names the encoder, for errors.

    Raises:
        BadInput: if the encoder cannot be loaded.
    """
    if encoder != "tfidf":
        return _encode(encoder, sentences, device, pooling, field)
    return _truncate(tfidf(sentences).astype(dtype), dimension)


def _truncate(terms: sparse.csr_matrix, dimension: int) -> NDArray[np.floating]:
    """TF-IDF rows in the space of their leading singular vectors, [items, at most `dimension`]."""
    from sklearn.utils.extmath import randomized_svd

    left, values, _ = randomized_svd(terms, min(dimension, *terms.shape), random_state=0)
    return np.ascontiguousarray(left * values, terms.dtype)


def _encode(
    encoder: str, sentences: Sequence[str], device: str, pooling: Literal["mean", "cls"], field: str
) -> NDArray[np.float32]:
    """A Hugging Face encoder's last hidden states, pooled over the tokens of a sentence, [items, d]."""
    import torch

    tokenizer, model = _load_encoder(encoder, field)
    model = model.to(device)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    # Sentences of like length together, so that little is padded.
    order = np.argsort([len(sentence) for sentence in sentences], kind="stable")
    vectors: NDArray[np.float32] | None = None
    with torch.inference_mode():
        for start in range(0, len(order), _ENCODER_BATCH):
            rows = order[start : start + _ENCODER_BATCH]
            texts = [sentences[row] for row in rows]
            batch = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
            found = pooled.float().cpu().numpy()
            vectors = np.empty((len(order), found.shape[1]), np.float32) if vectors is None else vectors
            vectors[rows] = found
    return np.empty((0, 1), np.float32) if vectors is None else vectors


def _load_encoder(encoder: str, field: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model = AutoModel.from_pretrained(encoder, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(
            f"{field} {encoder!r}: cannot be loaded ({reason}); name `tfidf`, a folder with a Hugging Face "
            "encoder, or the id of one"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model


def encoder_digest(encoder: str) -> str:
    """Identity of a local encoder's files, so that another model in the same folder is not taken for it."""
    folder = Path(encoder)
    if not folder.is_dir():
        return encoder
    digests = {}
    for path in sorted(file for file in folder.iterdir() if file.is_file()):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
