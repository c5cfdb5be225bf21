"""How the layers are computed changes nothing of what they compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.config import AdapterConfig, CollaborativeConfig, ExecutionConfig, ModelConfig
from trainer.models.attention import causal_attention, context_attention
from trainer.models.backbones.opt import OPTBackbone
from trainer.models.darec import DARec
from trainer.models.streams import PackedStreams, StreamPacker

LENGTHS = [3, 1, 4, 2]


def streams(last_only: bool = False) -> PackedStreams:
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    packer = StreamPacker(np.arange(5, 5 + sum(LENGTHS), dtype=np.int32), offsets, prompt=[20, 21])
    return packer.pack(
        np.array([0, 2, 1, 1, 3, 0]), np.array([2, 1, 3]), np.arange(3), np.array([0, 3]), last_only=last_only
    )


def states_and_gradients(execution: ExecutionConfig, layers: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    config = ModelConfig(
        architecture="SPS" + "-PSP" * (layers - 1),
        adapters=AdapterConfig(bottleneck=5),
        collaborative=CollaborativeConfig(dimension=4),
    )
    model = DARec(OPTBackbone(tiny_model("opt", layers)), config, 3, len(LENGTHS), execution)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    states = model(streams())
    states.square().sum().backward()
    return [states.detach(), *(p.grad for p in model.parameters() if p.requires_grad and p.grad is not None)]


@pytest.mark.parametrize(
    "execution",
    [{"checkpoint_activations": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)],
    ids=lambda switches: next(iter(switches)),
)
def test_switches_change_nothing(execution):
    layers = 1 if "compile" in execution else 2  # compiling takes seconds a layer
    plain, switched = (states_and_gradients(ExecutionConfig(**switches), layers) for switches in ({}, execution))
    assert len(plain) == len(switched) >= 10
    for one, other in zip(plain, switched, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_reading_the_last_state_only_gives_the_same_state():
    torch.manual_seed(1)
    config = ModelConfig(adapters=AdapterConfig(bottleneck=5), collaborative=CollaborativeConfig(dimension=4))
    model = DARec(OPTBackbone(tiny_model("opt")), config, 3, len(LENGTHS)).eval()
    every, last = model(streams()), model(streams(last_only=True))
    torch.testing.assert_close(last, every[[1, 2, 5, 6, 7]])


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["multi-head", "grouped-query"])
@pytest.mark.parametrize("last_only", [False, True])
def test_the_gpu_path_takes_the_same_inputs(heads, last_only):
    """Shapes alone, on fake CUDA tensors: whole streams and spans go to flash attention, partly read streams do not."""
    packed = streams(last_only)
    tokens, size, read = len(packed.token_ids_t), 16, len(packed.read_rows_r)
    with FakeTensorMode():

        def on_gpu(rows: int, count: int) -> torch.Tensor:
            return torch.empty(rows, count, size, dtype=torch.bfloat16, device="cuda")

        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

        for attention, queries in ((packed.every_row, tokens), (packed.read_rows_only, read)):
            qkv = (on_gpu(queries, heads[0]), on_gpu(tokens, heads[1]), on_gpu(tokens, heads[1]))
            column = (on_gpu(5, heads[1]), on_gpu(5, heads[1]))
            causal, context = (
                type(part)(**{name: moved(v) if name != "shapes" else v for name, v in vars(part).items()})
                for part in (attention.causal, attention.context)
            )
            assert causal_attention(qkv, causal).shape == (queries, heads[0] * size)
            assert context_attention(qkv, context, column).shape == (queries, heads[0] * size)
