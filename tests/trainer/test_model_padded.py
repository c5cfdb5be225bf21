"""The padded forward that ONNX gets, against the packed one."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from trainer.config import ModelConfig
from trainer.data.ragged import Ragged
from trainer.inference import TrainedModel
from trainer.models.backbones import FAMILIES
from trainer.models.collaborative.fold_in import FoldIn
from trainer.models.darec import DARec
from trainer.models.streams import StreamPacker

USERS, ITEMS = 5, 9
HISTORIES = [[3], [0, 8, 1, 2], [4, 4]]


def trained(family, **model):
    torch.manual_seed(1)
    config = ModelConfig.model_validate({"architecture": "SPS-PPS", "adapters": {"bottleneck": 3}, **model})
    darec = DARec(FAMILIES[tiny_model(family).config.model_type](tiny_model(family)), config, USERS, ITEMS)
    for parameter in darec.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    rng = np.random.default_rng(0)
    tokens = Ragged.from_rows([rng.integers(5, 200, size) for size in (2, 1, 4, 3, 5, 1, 2, 3, 4)])
    return TrainedModel(darec.eval(), StreamPacker(tokens.values, tokens.offsets, [7, 8]), 3, "cpu")


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("opt", {"collaborative": {"dimension": 2}}),
        ("opt_post_norm", {"collaborative": {"model": "mf", "dimension": 3, "projection": "per_layer"}}),
        ("qwen3", {"masks": ["causal", "context"], "collaborative": {"model": "none"}}),
        ("llama", {"adapters": {"replacement_frequency": 2, "bottleneck": 3}, "architecture": "PSP"}),
        ("bert", {"masks": ["context"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@torch.no_grad()
def test_padded_scores_are_the_packed_ones(family, model):
    found = trained(family, **model)
    cf = found.model.collaborative
    if cf is not None:
        rows = Ragged.from_rows(HISTORIES)
        found = dataclasses.replace(
            found, fold_in=FoldIn.fit(cf.items(), rows.values, rows.lengths, cf.users()[: len(rows)])
        )
    items = torch.tensor([[-1, -1, 3], [8, 1, 2], [-1, 4, 4]])
    users = np.array([2, -1, -1])
    packed = found.scores([np.array(row) for row in HISTORIES], users)
    assert torch.allclose(found.padded_scores()(items, torch.from_numpy(users)), packed, atol=1e-5)
