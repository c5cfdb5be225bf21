"""A trained model at work: scores of all items after a history. The one door for exports and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import ModelConfig, RunConfig
from trainer.data.dataset import Dataset, Split
from trainer.data.text import encode_items
from trainer.errors import BadInput
from trainer.models.backbones import LoadedBackbone, load_backbone
from trainer.models.darec import DARec
from trainer.models.streams import PROMPT, StreamPacker
from trainer.training.evaluation import rank_targets, score_histories
from trainer.training.precision import Precision, autocast
from trainer.training.warm import Warm
from trainer.training.workers import Workers
from trainer.training.workers import default_device as default_device  # part of this door


@dataclass(frozen=True)
class TrainedModel:
    """A trained DARec with its streams. Make one with `restore` or `assemble`."""

    model: DARec
    packer: StreamPacker
    max_items: int
    device: str
    precision: Precision = "float32"

    def scores(self, histories: Sequence[NDArray[np.int64]], users: NDArray[np.int64] | None = None) -> Tensor:
        """Scores of all items after each history.

        Args:
            histories: item indices of each user, oldest first, at least one each.
            users: [n] user of each history; users that were not trained on (-1, the default) get the average user's
                collaborative vector.

        Returns:
            [n, items] on the CPU, larger is better.
        """
        users = np.full(len(histories), -1) if users is None else users
        found = torch.empty(len(histories), self.model.item_head.out_features)
        with autocast(self.precision, self.device):
            for chunk, scores in score_histories(
                self.model, self.packer, list(histories), users, self.max_items, self.device
            ):
                found[torch.from_numpy(chunk)] = scores.cpu()
        return found

    def ranks(self, dataset: Dataset, split: Split, *, known_users: bool) -> Tensor:
        """[users] rank of every user's held-out item; `test` opens the test split.

        Args:
            dataset: a dataset whose items are the model's, in the same order.
            split: `validation` or `test`.
            known_users: the dataset's users are those the model was trained on.
        """
        with autocast(self.precision, self.device):
            return rank_targets(
                self.model,
                self.packer,
                dataset.inputs(split),
                dataset.targets(split),
                max_items=self.max_items,
                device=self.device,
                workers=Workers(0, 1),
                known_users=known_users,
            )


def restore(config: RunConfig, state: dict[str, Tensor], warm: Warm | None = None, device: str = "cpu") -> TrainedModel:
    """The model of a run from its config and trained tensors.

    Raises:
        BadInput: if the tensors do not fit the config.
    """
    materials = (warm or Warm()).materials(config)
    dataset = materials.dataset
    model = _model(config.model, materials.backbone, dataset.n_users, dataset.n_items, state)
    precision = config.execution.precision
    return TrainedModel(model.to(device), materials.packer, config.data.max_items, device, precision)


def assemble(
    config: ModelConfig,
    sentences: Sequence[str],
    state: dict[str, Tensor],
    *,
    n_users: int,
    max_items: int,
    max_item_tokens: int,
    device: str = "cpu",
) -> TrainedModel:
    """The model of an export, which has no dataset.

    Args:
        config: the model; its backbone is a folder or a hub id.
        sentences: item sentence of every item, in index order.
        state: trained tensors by name.
        n_users: users that it was trained on.
        max_items: newest items of a history that enter a stream.
        max_item_tokens: tokens of an item sentence that are kept.
        device: where to put it.

    Raises:
        BadInput: if the backbone cannot be loaded or the tensors do not fit.
    """
    backbone = load_backbone(config.backbone.name, config.backbone.revision)
    tokens = encode_items(backbone.tokenizer, sentences, max_item_tokens)
    prompt = backbone.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    model = _model(config, backbone, n_users, len(sentences), state)
    return TrainedModel(model.to(device), StreamPacker(tokens.values, tokens.offsets, prompt), max_items, device)


def _model(
    config: ModelConfig, backbone: LoadedBackbone, n_users: int, n_items: int, state: dict[str, Tensor]
) -> DARec:
    try:
        model = DARec(backbone.model, config, n_users, n_items)
        model.load_trained_state(state)
    except ValueError as error:
        raise BadInput(f"the trained tensors do not fit the model ({error})") from error
    return model.eval()
