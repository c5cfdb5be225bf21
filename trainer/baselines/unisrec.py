"""UniSRec: items known by their texts (Hou et al., "Towards Universal Sequence Representation Learning", KDD 2022).

    v_i = adaptor(text_i) + id_i         p(i | h) = softmax_i cos(state(h), v_i) / τ

Texts are encoded once by a frozen language model; a mixture of whitening layers (`text_adaptor.py`) brings them to the
size of a Transformer. With `ids` an item has a learnt vector of its own besides (transductive); without, it is its
text alone (inductive). Pre-training on other datasets is in `contrastive.py`.
Differs from the authors' code: positions are counted from the oldest item, the experts of one pass share a dropout
mask, and all items of a history are predicted in one pass. Their published checkpoints hold pickled objects and are
not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from trainer.baselines.catalogue import Catalogue
from trainer.baselines.contrastive import Pretraining, Texts, pretrain
from trainer.baselines.item_text import Pooling, item_vectors
from trainer.baselines.sequence import SequenceModel
from trainer.baselines.text_adaptor import AdaptorOptions, TextSequences
from trainer.cache import cached
from trainer.data.dataset import Dataset
from trainer.data.item_vectors import encoder_digest
from trainer.device import default_device
from trainer.errors import BadInput
from trainer.models.item_head import computed_head

_MODEL = "unisrec.safetensors"
_LOSSES = "losses.json"


class UniSRecOptions(AdaptorOptions):
    """Options of `unisrec`."""

    encoder: str = Field(
        "tfidf",
        description="Of the texts: `tfidf` (TF-IDF and truncated SVD), a folder with a Hugging Face encoder, or the id "
        "of one.",
    )
    pooling: Pooling = Field("mean", description="Of the encoder's states; the authors take `cls`, the first.")
    ids: bool = Field(True, description="Items have learnt vectors of their own besides.")
    pretraining: Pretraining | None = Field(None, description="Pre-train on other datasets first.")
    pretrained: str | None = Field(None, description="Folder that a pre-training has left.")
    fix_encoder: bool = Field(True, description="Leave a pre-trained Transformer as it is; the rest is fine-tuned.")

    @model_validator(mode="after")
    def _one_source(self) -> UniSRecOptions:
        if self.pretraining and self.pretrained:
            raise ValueError("name `pretraining` or `pretrained`, not both")
        if self.encoder == "tfidf" and (self.pretraining or self.pretrained):
            raise ValueError("TF-IDF means another thing on every dataset; name an `encoder` to pre-train with")
        return self


class UniSRec(SequenceModel):
    """See the module.

    Args:
        text_iw: [I, w] text vectors of the items.
        max_items: longest sequence.
        options: its own.
    """

    Options = UniSRecOptions

    def __init__(self, text_iw: Tensor, max_items: int, options: UniSRecOptions) -> None:
        super().__init__()
        self._temperature = options.temperature
        self.sequences = TextSequences(text_iw.shape[1], max_items, options)
        self.ids = nn.Embedding(len(text_iw), options.hidden) if options.ids else None
        if self.ids is not None:
            nn.init.normal_(self.ids.weight, std=0.02)
        self.text_iw: Tensor
        self.register_buffer("text_iw", text_iw, persistent=False)

    @classmethod
    def build(cls, catalogue: Catalogue, max_items: int, options: UniSRecOptions) -> Self:
        model = cls(item_vectors(catalogue, options.encoder, options.pooling), max_items, options)
        folder = options.pretrained
        if options.pretraining is not None:
            folder = str(pretrained_folder(catalogue.cache, options, options.pretraining, max_items))
        if folder is not None:
            _load(model.sequences, folder, max_items)
            model.sequences.encoder.requires_grad_(not options.fix_encoder)
        return model

    def forward(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        own = 0 if self.ids is None else self.ids(inputs_bt)
        return self.sequences.states(self.sequences.adaptor(self.text_iw[inputs_bt]) + own) / self._temperature

    def item_head(self) -> nn.Linear:
        own = 0 if self.ids is None else self.ids.weight
        return computed_head(normalize((self.sequences.adaptor(self.text_iw) + own).float(), dim=-1))


def pretrained_folder(cache: Path | str, options: UniSRecOptions, how: Pretraining, max_items: int) -> Path:
    """Folder of adaptor and Transformer, pre-trained at first use, then found by content; for `pretrained`.

    Raises:
        BadInput: if a dataset or the encoder cannot be used.
    """
    datasets = [Dataset.open(path) for path in how.datasets]
    key = {
        "sizes": {name: getattr(options, name) for name in AdaptorOptions.model_fields},
        "pretraining": how.model_dump(exclude={"datasets"}),
        "datasets": [dataset.training_digest() for dataset in datasets],
        "encoder": encoder_digest(options.encoder),
        "pooling": options.pooling,
        "max_items": max_items,
    }
    return cached(cache, "unisrec", key, lambda folder: _pretrain(folder, datasets, cache, options, how, max_items))


def _pretrain(
    folder: Path, datasets: list[Dataset], cache: Path | str, options: UniSRecOptions, how: Pretraining, max_items: int
) -> None:
    texts = Texts.join([_texts(dataset, cache, options, how, max_items) for dataset in datasets])
    device = default_device()
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(how.seed)
        model = TextSequences(texts.vectors_iw.shape[1], max_items, options).to(device)
        losses = pretrain(model, texts, how, options.temperature, device)
    save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, folder / _MODEL)
    (folder / _LOSSES).write_text(json.dumps(losses), encoding="utf-8")


def _texts(dataset: Dataset, cache: Path | str, options: UniSRecOptions, how: Pretraining, max_items: int) -> Texts:
    catalogue = Catalogue.of(dataset, cache)
    histories = dataset.train.newest(max_items + 1)
    vectors, altered = (
        item_vectors(catalogue, options.encoder, options.pooling, share) for share in (0.0, how.dropped)
    )
    return Texts(vectors, altered, histories.take(np.flatnonzero(histories.lengths >= 2)))


def _load(model: TextSequences, folder: str, max_items: int) -> None:
    field = f"baseline.options.pretrained {folder!r}"
    try:
        state = load_file(Path(folder) / _MODEL)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"{field}: {_MODEL} cannot be read ({error}); name a folder that a pre-training has left"
        ) from error
    positions = "encoder.position"
    if len(state.get(positions, [])) > max_items:
        state[positions] = state[positions][:max_items].clone()
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise BadInput(f"{field}: {wrong[0]} has another size than this run's options ask for; use the same ones")
    model.load_state_dict(state)
