"""Item texts as vectors, encoded once and found again by content."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainer.baselines.catalogue import Catalogue
from trainer.cache import cached
from trainer.data.item_vectors import encoder_digest, text_vectors
from trainer.device import default_device

Pooling = Literal["mean", "cls"]
_FILE = "vectors.npy"
_FIELD = "baseline.options.encoder"


def item_vectors(
    catalogue: Catalogue, encoder: str, pooling: Pooling, words_dropped: float = 0.0, field: str = _FIELD
) -> Tensor:
    """Vectors of the item sentences, [items, w] float32.

    Those of TF-IDF are scaled to a mean square of 1, which is about what a language model's states have.

    Args:
        catalogue: the items.
        encoder: `tfidf` (TF-IDF and truncated SVD, w at most 256), or a Hugging Face encoder by folder or id.
        pooling: of an encoder's last states: their mean over the tokens, or the first one's.
        words_dropped: share of the words of each sentence that are left out, at random; always the same ones.
        field: of the config that names the encoder, for errors.

    Raises:
        BadInput: if the encoder cannot be loaded.
    """
    key = {
        "items": catalogue.digest,
        "encoder": encoder_digest(encoder),
        "pooling": pooling,
        "words_dropped": words_dropped,
    }

    def build(folder: Path) -> None:
        sentences = _without_words(catalogue, words_dropped) if words_dropped else catalogue.sentences
        with torch.random.fork_rng(devices=[]):  # a loader may draw, and a cached result would not
            found = text_vectors(sentences, encoder, default_device(), pooling=pooling, field=field)
        if encoder == "tfidf":
            found = found / max(float(np.sqrt(np.mean(found**2))), 1e-12)
        np.save(folder / _FILE, found.astype(np.float32))

    return torch.from_numpy(np.load(cached(catalogue.cache, "item-text", key, build) / _FILE))


def _without_words(catalogue: Catalogue, share: float) -> list[str]:
    rng = np.random.default_rng(0)
    kept = []
    for sentence in catalogue.sentences:
        words = np.array(sentence.split())
        kept.append(" ".join(words[rng.random(len(words)) >= share]) or sentence)
    return kept
