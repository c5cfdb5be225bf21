"""The fast model against the literal one: hidden states, losses and gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import (
    HISTORIES,
    ITEM_TOKENS,
    PROMPT,
    TOLERANCE,
    backbone,
    batch,
    fast_model,
    model_config,
    packer,
    reference_for,
    reference_losses,
)
from tiny_models import TINY

from trainer.architecture import Architecture
from trainer.config import LossConfig, ModelConfig
from trainer.data.batches import Batch, shard
from trainer.losses import darec_losses
from trainer.models.darec import DARec
from trainer.training.loop import to_step_input

WEIGHTS = LossConfig(align=0.7, contrastive=0.4, collaborative=0.3, temperature=0.8)
EVERY_PATTERN = ["".join(bits) for bits in itertools.product("SP", repeat=3)]
VARIANTS = {
    "llmrec": {"masks": ["causal"], "adapters": {"enabled": False}, "collaborative": {"model": "none"}},
    "variation_1": {"masks": ["causal"], "collaborative": {"model": "none"}},
    "variation_2": {"architecture": "serial"},
    "all_parallel": {"architecture": "parallel"},
    "context_alone": {"masks": ["context"], "architecture": "PSS-SSP"},
    "two_causal": {"masks": ["causal", "causal"], "architecture": "SPP-PSS"},
    "no_adapters": {"adapters": {"enabled": False}},
    "every_second_layer": {"adapters": {"replacement_frequency": 2}, "architecture": "SPP"},
    "relu": {"adapters": {"activation": "relu", "bottleneck": 3}, "architecture": "PSP-SPS"},
    "gelu": {"adapters": {"activation": "gelu"}, "architecture": "PSP-SPS"},
    "mf": {"collaborative": {"model": "mf"}, "architecture": "SSP-PPS"},
    "ncf_per_layer": {"collaborative": {"projection": "per_layer"}, "architecture": "SPS-PSS"},
    "frozen_ncf": {"collaborative": {"training": "frozen"}},
    "frozen_mf_per_layer": {"collaborative": {"model": "mf", "training": "frozen", "projection": "per_layer"}},
    "lightgcn": {"collaborative": {"model": "lightgcn", "propagation_layers": 2}, "architecture": "SPS-PSS"},
    "frozen_lightgcn": {"collaborative": {"model": "lightgcn", "training": "frozen"}},
    "pretrained_ncf": {"collaborative": {"training": "pretrained"}},
    "item_text": {"item_text": {"dimension": 3}, "architecture": "SPS-PSS"},
    "item_text_alone": {"item_text": {"dimension": 4, "free": False}},
    "no_column": {"collaborative": {"model": "none"}, "architecture": "PSP-PSP"},
}


def assert_losses_and_gradients_agree(name: str, config: ModelConfig, batch: Batch) -> None:
    darec = fast_model(name, config)
    losses = darec_losses(darec, to_step_input(batch, packer(), "cpu"), WEIGHTS)
    losses["total"].backward()
    reference, trained = reference_for(name, darec, config)
    expected = reference_losses(reference, batch, WEIGHTS)
    expected["total"].backward()
    assert losses.keys() == expected.keys()
    for loss, value in expected.items():
        torch.testing.assert_close(
            losses[loss], value, check_dtype=False, msg=lambda m, n=loss: f"{n}: {m}", **TOLERANCE
        )
    own = dict(darec.named_parameters())
    for tensor_name, tensor in trained.items():
        if not tensor.requires_grad:
            assert tensor_name not in own or own[tensor_name].grad is None
            continue
        found, wanted = (torch.zeros_like(t) if t.grad is None else t.grad for t in (own[tensor_name], tensor))
        torch.testing.assert_close(found, wanted, msg=lambda m, n=tensor_name: f"{n}: {m}", **TOLERANCE)


@pytest.mark.parametrize("bits", EVERY_PATTERN)
@pytest.mark.parametrize("name", ["opt", "opt_post_norm"])
def test_every_pattern_of_a_layer_agrees(name, bits):
    assert_losses_and_gradients_agree(name, model_config(architecture=f"{bits}-{bits[::-1]}"), batch())


@pytest.mark.parametrize("architecture", ["SPS-PPS", "PSP-SSP"])
@pytest.mark.parametrize("name", [name for name in TINY if not name.startswith("opt")])
def test_every_family_agrees(name, architecture):
    assert_losses_and_gradients_agree(name, model_config(architecture=architecture), batch())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["opt", "qwen3", "bert"])
def test_every_variant_agrees(name, variant):
    config = model_config(**VARIANTS[variant])
    joint = config.collaborative.model != "none" and config.collaborative.training != "frozen"
    losses = {"align": variant != "llmrec", "contrastive": variant != "llmrec", "collaborative": joint}
    assert_losses_and_gradients_agree(name, config, batch(**losses))


histories = st.lists(st.lists(st.integers(0, len(ITEM_TOKENS) - 1), min_size=1, max_size=5), min_size=1, max_size=3)


@given(
    st.sampled_from([name for name in TINY if name != "opt_three_layers"]),
    histories,
    st.lists(st.sampled_from([-1, *HISTORIES]), min_size=3, max_size=3),
    st.sets(st.integers(0, len(ITEM_TOKENS) - 1)),
    st.lists(st.sampled_from(EVERY_PATTERN), min_size=2, max_size=2),
    st.sampled_from(["mf", "ncf", "none"]),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_states_of_any_streams_agree(name, histories, users, align, architecture, cf, last_only):
    """Any histories and items, by known users and by others (-1), with every [SEQ] read or the last alone."""
    config = model_config(architecture="-".join(architecture), collaborative={"model": cf})
    darec = fast_model(name, config)
    reference, _ = reference_for(name, darec, config)
    users, items = users[: len(histories)], np.array(sorted(align), dtype=np.int64)
    lengths = np.array([len(history) for history in histories])
    streams = packer().pack(np.concatenate(histories), lengths, np.array(users), items, last_only=last_only)
    expected = []
    for user, history in zip(users, histories, strict=True):
        states = reference.sequence_states(ITEM_TOKENS, history, None if user < 0 else user)
        expected += states[-1:] if last_only else states
    expected += [reference.align_state(ITEM_TOKENS, PROMPT, int(item)) for item in items]
    torch.testing.assert_close(darec(streams), torch.stack(expected), **TOLERANCE)


def test_a_plain_last_layer_agrees():
    """Of three layers the second alone is replaced; the last one, plain, is computed where it is read too."""
    config = model_config(architecture="PSP", adapters={"replacement_frequency": 2})
    assert_losses_and_gradients_agree("opt_three_layers", config, batch())


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shards_add_up_to_the_whole_batch(world):
    config = model_config(architecture="SPP-PPS")
    whole, parts = fast_model("opt", config), fast_model("opt", config)
    darec_losses(whole, to_step_input(batch(), packer(), "cpu"), WEIGHTS)["total"].backward()
    for rank in range(world):
        share = shard(batch(), rank, world)
        if len(share.users):
            darec_losses(parts, to_step_input(share, packer(), "cpu"), WEIGHTS)["total"].backward()
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}", **TOLERANCE)


def test_items_do_not_see_each_other_under_the_context_mask_alone():
    """With the causal branch gated off, an item's state depends on its own tokens and c only."""
    darec = fast_model("opt", model_config())
    for layer in darec.da_layers.values():
        layer.router.gate.weight.data.zero_()
        layer.router.gate.bias.data.copy_(torch.tensor([-60.0, 60.0]))
    one = darec(packer().pack(np.array([1, 2]), np.array([2]), np.array([0]), np.array([], dtype=np.int64)))
    other = darec(packer().pack(np.array([5, 2]), np.array([2]), np.array([0]), np.array([], dtype=np.int64)))
    torch.testing.assert_close(one[1], other[1], **TOLERANCE)
    assert not torch.allclose(one[0], other[0])


def test_architecture_must_fit_the_number_of_layers():
    with pytest.raises(ValueError, match="describes 1 DALayers, the model has 2"):
        DARec(backbone("opt"), ModelConfig(architecture="SSS"), 3, 6)


def test_architecture_text_and_bits_round_trip():
    architecture = Architecture((0, 1, 0, 1, 1, 0))
    assert architecture.text == "SPS-PPS"
    assert Architecture.parse("sps-pps", 2) == architecture
