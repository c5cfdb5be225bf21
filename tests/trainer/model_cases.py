"""A small catalogue, its streams and a batch; the fast model on them and its literal counterpart."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import torch
from reference import ReferenceDARec
from reference.collaborative import LightGCN
from tiny_models import tiny_model
from torch import Tensor

from trainer.config import LossConfig, ModelConfig
from trainer.data.batches import Batch, Terms
from trainer.data.ragged import Ragged
from trainer.models.backbones import FAMILIES
from trainer.models.backbones.base import Backbone
from trainer.models.darec import DARec
from trainer.models.streams import StreamPacker

ITEM_TOKENS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15], [16, 17, 18], [19, 20]]
PROMPT = [30, 31, 32]
HISTORIES = {0: [0, 2, 1, 4], 1: [3, 5], 2: [1, 1, 0, 5, 2, 3]}
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def packer() -> StreamPacker:
    values = np.concatenate([np.array(tokens, dtype=np.int32) for tokens in ITEM_TOKENS])
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in ITEM_TOKENS])])
    return StreamPacker(values, offsets, PROMPT)


def batch(align: bool = True, contrastive: bool = True, collaborative: bool = True) -> Batch:
    """All histories, with the losses that are asked for: n_s = 2 positions of the last user, n_cl = 2 negatives."""
    users = np.array(list(HISTORIES))
    inputs = [HISTORIES[user][:-1] for user in users]
    targets = np.concatenate([HISTORIES[user][1:] for user in users])
    rows = np.array([1, 3, 4, 6]) if contrastive else np.zeros(0, dtype=np.int64)
    negatives = np.array([[3, 5], [0, 1], [4, 4], [2, 4]])[: len(rows)]
    pairs = [(user, item) for user in users for item in HISTORIES[user]] if collaborative else []
    counted = [0, 4] if align else []
    items = np.unique(np.concatenate([counted, targets[rows], negatives.ravel()])).astype(np.int64)
    return Batch(
        users=users,
        lengths=np.array([len(part) for part in inputs]),
        inputs=np.concatenate(inputs),
        targets=targets,
        contrastive_rows=rows,
        contrastive_negatives=negatives,
        align_items=items,
        align_counted=np.full(len(items), align),
        sampled=np.empty(0, np.int64),
        cf_users=np.array([user for user, _ in pairs], dtype=np.int64),
        cf_items=np.array([item for _, item in pairs], dtype=np.int64),
        cf_negatives=np.random.default_rng(0).integers(0, len(ITEM_TOKENS), (len(pairs), 2)),
        terms=Terms(len(targets), len(items) if align else 0, len(rows), len(pairs)),
    )


@cache
def hf_model(name: str):
    """One of `TINY` in float64; not to be changed."""
    return tiny_model(name).double()


def adapted(model) -> Backbone:
    """A Hugging Face model as a backbone; the model itself stays as it is."""
    return FAMILIES[model.config.model_type](copy.deepcopy(model))


def backbone(name: str) -> Backbone:
    return adapted(hf_model(name))


def model_config(**sections) -> ModelConfig:
    """A model section with small sizes."""
    sizes = {"adapters": {"bottleneck": 5}, "collaborative": {"dimension": 4, "negatives": 2}}
    merged = {key: {**sizes[key], **sections.pop(key, {})} for key in sizes}
    return ModelConfig.model_validate({**merged, **sections})


def fast_model(name: str, config: ModelConfig) -> DARec:
    torch.manual_seed(1)
    interactions = Ragged.from_rows(HISTORIES.values())
    pairs = (interactions.row_of_value, interactions.values)
    texts = None
    if config.item_text is not None:
        texts = torch.randn(len(ITEM_TOKENS), config.item_text.dimension, generator=torch.Generator().manual_seed(2))
    sizes = (len(HISTORIES), len(ITEM_TOKENS))
    darec = DARec(backbone(name), config, *sizes, interactions=pairs, item_texts=texts).double()
    for own, parameter in darec.named_parameters():
        if not own.startswith("backbone."):  # away from the identity and from zero gates, or half would go untested
            parameter.data.normal_(std=0.3)
    return darec


def reference_for(name: str, darec: DARec, config: ModelConfig) -> tuple[ReferenceDARec, dict[str, Tensor]]:
    """The literal model with the same weights, and these as tensors of its own."""
    learns = {own: parameter.requires_grad for own, parameter in darec.named_parameters()}
    trained = {
        own: tensor.detach().clone().requires_grad_(learns.get(own, False))
        for own, tensor in darec.trained_state().items()
    }
    collaborative = None
    if config.collaborative.model == "lightgcn":
        collaborative = LightGCN(trained, list(HISTORIES.values()), config.collaborative.propagation_layers)
    return ReferenceDARec(hf_model(name), trained, config, collaborative), trained


def reference_losses(reference: ReferenceDARec, batch: Batch, weights: LossConfig) -> dict[str, Tensor]:
    """Every loss of a batch by name, with `total`."""
    states = []
    for user, history in HISTORIES.items():
        states += reference.sequence_states(ITEM_TOKENS, history[:-1], user)
    aligned = {int(i): reference.align_state(ITEM_TOKENS, PROMPT, int(i)) for i in batch.align_items}
    terms = {"sequence": [reference.cross_entropy(s, int(t)) for s, t in zip(states, batch.targets, strict=True)]}
    if batch.terms.align:
        terms["align"] = [reference.cross_entropy(aligned[i], i) for i in aligned]
    if batch.terms.contrastive:
        terms["contrastive"] = [
            reference.info_nce(
                states[r], aligned[int(batch.targets[r])], [aligned[int(n)] for n in ns], weights.temperature
            )
            for r, ns in zip(batch.contrastive_rows, batch.contrastive_negatives, strict=True)
        ]
    if batch.terms.collaborative:
        triples = zip(batch.cf_users, batch.cf_items, batch.cf_negatives, strict=True)
        terms["collaborative"] = [
            reference.collaborative.term(int(u), int(i), list(map(int, js))) for u, i, js in triples
        ]
    losses = {name: torch.stack(values).mean() for name, values in terms.items()}
    losses["total"] = sum(value * getattr(weights, name, 1) for name, value in losses.items())
    return losses
