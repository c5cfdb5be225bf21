"""The fast model against the literal one: hidden states, losses and gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from reference_darec import ReferenceDARec

from trainer.architecture import Architecture
from trainer.config import AdapterConfig, CollaborativeConfig, LossConfig, ModelConfig
from trainer.data.batches import Batch, Terms, shard
from trainer.losses import darec_losses
from trainer.models.backbones.opt import OPTBackbone
from trainer.models.darec import DARec
from trainer.models.streams import StreamPacker
from trainer.training.loop import to_step_input

ITEM_TOKENS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15], [16, 17, 18], [19, 20]]
PROMPT = [30, 31, 32]
HISTORIES = {0: [0, 2, 1, 4], 1: [3, 5], 2: [1, 1, 0, 5, 2, 3]}
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def packer() -> StreamPacker:
    values = np.concatenate([np.array(tokens, dtype=np.int32) for tokens in ITEM_TOKENS])
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in ITEM_TOKENS])])
    return StreamPacker(values, offsets, PROMPT)


def batch() -> Batch:
    users = np.array(list(HISTORIES))
    inputs = [HISTORIES[user][:-1] for user in users]
    targets = [HISTORIES[user][1:] for user in users]
    flat_targets = np.concatenate(targets)
    rows, negatives = np.array([1, 3, 6]), np.array([[3, 5], [0, 1], [4, 4]])
    pairs = [(user, item) for user in users for item in HISTORIES[user]]
    align = np.unique(np.concatenate([[0, 4], flat_targets[rows], negatives.ravel()]))
    counted = np.ones(len(align), dtype=bool)
    return Batch(
        users=users,
        lengths=np.array([len(part) for part in inputs]),
        inputs=np.concatenate(inputs),
        targets=flat_targets,
        contrastive_rows=rows,
        contrastive_negatives=negatives,
        align_items=align,
        align_counted=counted,
        sampled=np.empty(0, np.int64),
        cf_users=np.array([user for user, _ in pairs]),
        cf_items=np.array([item for _, item in pairs]),
        cf_negatives=np.random.default_rng(0).integers(0, len(ITEM_TOKENS), (len(pairs), 2)),
        terms=Terms(len(flat_targets), len(align), len(rows), len(pairs)),
    )


def fast_model(opt_model, bits: str, **model) -> DARec:
    torch.manual_seed(1)
    config = ModelConfig(
        architecture=f"{bits}-{bits[::-1]}",
        adapters=AdapterConfig(bottleneck=5, activation=model.pop("activation", "identity")),
        collaborative=CollaborativeConfig(model=model.pop("cf", "ncf"), dimension=4, negatives=2),
    )
    darec = DARec(OPTBackbone(copy.deepcopy(opt_model)), config, len(HISTORIES), len(ITEM_TOKENS)).double()
    for parameter in darec.parameters():
        if parameter.requires_grad:  # away from the identity and from zero gates, or half of it would go untested
            parameter.data.normal_(std=0.3)
    return darec


def reference_for(opt_model, darec: DARec, activation: str = "identity") -> tuple[ReferenceDARec, dict]:
    trained = {name: tensor.detach().clone().requires_grad_() for name, tensor in darec.trained_state().items()}
    architecture = darec.architecture
    kinds = [architecture.layer(k) for k in range(architecture.layers)]
    frozen = copy.deepcopy(opt_model).requires_grad_(False)
    return ReferenceDARec(frozen, trained, kinds, activation), trained


def reference_losses(reference: ReferenceDARec, batch: Batch, cf: str, temperature: float) -> dict[str, torch.Tensor]:
    states = []
    for user, history in HISTORIES.items():
        states += reference.sequence_states(ITEM_TOKENS, history[:-1], user)
    aligned = {int(i): reference.align_state(ITEM_TOKENS, PROMPT, int(i)) for i in batch.align_items}
    losses = {
        "sequence": [reference.cross_entropy(s, int(t)) for s, t in zip(states, batch.targets, strict=True)],
        "align": [reference.cross_entropy(aligned[i], i) for i in aligned],
        "contrastive": [
            reference.info_nce(states[r], aligned[int(batch.targets[r])], [aligned[int(n)] for n in ns], temperature)
            for r, ns in zip(batch.contrastive_rows, batch.contrastive_negatives, strict=True)
        ],
    }
    if cf != "none":
        term = reference.bpr if cf == "mf" else reference.neumf_bce
        triples = zip(batch.cf_users, batch.cf_items, batch.cf_negatives, strict=True)
        losses["collaborative"] = [term(int(u), int(i), [int(j) for j in js]) for u, i, js in triples]
    return {name: torch.stack(terms).mean() for name, terms in losses.items()}


def test_hidden_states_agree_for_both_stream_kinds(opt_model, bits):
    darec = fast_model(opt_model, bits)
    reference, _ = reference_for(opt_model, darec)
    items = np.concatenate(list(HISTORIES.values()))
    lengths = np.array([len(history) for history in HISTORIES.values()])
    align = np.arange(len(ITEM_TOKENS))
    states = darec(packer().pack(items, lengths, np.array(list(HISTORIES)), align))
    expected = [s for u, h in HISTORIES.items() for s in reference.sequence_states(ITEM_TOKENS, h, u)]
    expected += [reference.align_state(ITEM_TOKENS, PROMPT, int(item)) for item in align]
    torch.testing.assert_close(states, torch.stack(expected), **TOLERANCE)


@pytest.mark.parametrize("cf", ["ncf", "mf"])
def test_losses_and_gradients_agree(opt_model, bits, cf):
    darec = fast_model(opt_model, bits, cf=cf)
    weights = LossConfig(align=0.7, contrastive=0.4, collaborative=0.3, temperature=0.8)
    losses = darec_losses(darec, to_step_input(batch(), packer(), "cpu"), weights)
    losses["total"].backward()

    reference, trained = reference_for(opt_model, darec)
    expected = reference_losses(reference, batch(), cf, weights.temperature)
    total = expected["sequence"] + 0.7 * expected["align"] + 0.4 * expected["contrastive"]
    total = total + 0.3 * expected["collaborative"]
    total.backward()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, check_dtype=False, **TOLERANCE)
    own = dict(darec.named_parameters())
    for name, tensor in trained.items():
        assert tensor.grad is not None, name
        torch.testing.assert_close(own[name].grad, tensor.grad, msg=lambda m, n=name: f"{n}: {m}", **TOLERANCE)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activations_agree(opt_model, activation):
    darec = fast_model(opt_model, "SPS", activation=activation)
    reference, _ = reference_for(opt_model, darec, activation)
    states = darec(packer().pack(np.array([0, 2, 1]), np.array([3]), np.array([1]), np.array([4])))
    expected = [*reference.sequence_states(ITEM_TOKENS, [0, 2, 1], 1), reference.align_state(ITEM_TOKENS, PROMPT, 4)]
    torch.testing.assert_close(states, torch.stack(expected), **TOLERANCE)


def test_without_cf_model_there_is_no_column(opt_model):
    darec = fast_model(opt_model, "PSP", cf="none")
    reference, _ = reference_for(opt_model, darec)
    states = darec(packer().pack(np.array([0, 2]), np.array([2]), np.array([0]), np.array([], dtype=np.int64)))
    torch.testing.assert_close(states, torch.stack(reference.sequence_states(ITEM_TOKENS, [0, 2], 0)), **TOLERANCE)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shards_add_up_to_the_whole_batch(opt_model, world):
    weights = LossConfig(align=0.7, contrastive=0.4, collaborative=0.3)
    whole = fast_model(opt_model, "SPP")
    darec_losses(whole, to_step_input(batch(), packer(), "cpu"), weights)["total"].backward()
    parts = fast_model(opt_model, "SPP")
    for rank in range(world):
        share = shard(batch(), rank, world)
        if len(share.users):
            darec_losses(parts, to_step_input(share, packer(), "cpu"), weights)["total"].backward()
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}", **TOLERANCE)


def test_an_identity_model_with_a_closed_context_branch_is_the_backbone(opt_model):
    """All adapters at the identity and the context branch gated off leave Hugging Face's own forward."""
    darec = fast_model(opt_model, "SSS", cf="none")
    for layer in darec.da_layers.values():
        for adapted in (*layer.relation, layer.recommendation):
            adapted.adapter.up.weight.data.zero_()
            adapted.adapter.up.bias.data.zero_()
        layer.router.gate.weight.data.zero_()
        layer.router.gate.bias.data.copy_(torch.tensor([60.0, -60.0]))
    histories, aligned = [[0, 2, 1, 4], [3]], [5]
    states = darec(packer().pack(np.array([0, 2, 1, 4, 3]), np.array([4, 1]), np.array([0, 1]), np.array(aligned)))
    special = darec.special.detach()

    def hidden(parts: list[list[int]], closing: torch.Tensor) -> torch.Tensor:
        embeds = [torch.cat([opt_model.decoder.embed_tokens(torch.tensor(part)), closing[None]]) for part in parts]
        return opt_model(inputs_embeds=torch.cat(embeds)[None]).last_hidden_state[0]

    expected = []
    for history in histories:
        parts = [ITEM_TOKENS[item] for item in history]
        ends = np.cumsum([len(part) + 1 for part in parts]) - 1
        expected.append(hidden(parts, special[0])[ends])
    expected += [hidden([PROMPT + ITEM_TOKENS[item]], special[1])[-1:] for item in aligned]
    torch.testing.assert_close(states, torch.cat(expected), **TOLERANCE)


def test_items_do_not_see_each_other_under_the_context_mask_alone(opt_model):
    """With the causal branch gated off, an item's state depends on its own tokens and c only."""
    darec = fast_model(opt_model, "SSS")
    for layer in darec.da_layers.values():
        layer.router.gate.weight.data.zero_()
        layer.router.gate.bias.data.copy_(torch.tensor([-60.0, 60.0]))
    one = darec(packer().pack(np.array([1, 2]), np.array([2]), np.array([0]), np.array([], dtype=np.int64)))
    other = darec(packer().pack(np.array([5, 2]), np.array([2]), np.array([0]), np.array([], dtype=np.int64)))
    torch.testing.assert_close(one[1], other[1], **TOLERANCE)
    assert not torch.allclose(one[0], other[0])


def test_architecture_must_fit_the_number_of_layers(opt_model):
    config = ModelConfig(architecture="SSS")
    with pytest.raises(ValueError, match="describes 1 DALayers, the model has 2"):
        DARec(OPTBackbone(copy.deepcopy(opt_model)), config, 3, 6)


def test_architecture_text_and_bits_round_trip():
    architecture = Architecture((0, 1, 0, 1, 1, 0))
    assert architecture.text == "SPS-PPS"
    assert Architecture.parse("sps-pps", 2) == architecture
