"""What holds for every backbone family: it is the Hugging Face model, taken apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from model_cases import ITEM_TOKENS, PROMPT, TOLERANCE, adapted, backbone, fast_model, hf_model, model_config, packer
from safetensors.torch import load_file, save_file
from tiny_models import TINY, save_tiny, tiny_model
from tiny_runs import tiny_data, tiny_run

from trainer.data.dataset import Dataset
from trainer.errors import BadInput
from trainer.models.backbones import FAMILIES, layer_count, load_backbone, position_count
from trainer.training.precision import autocast, hold_in
from trainer.training.run import run

HISTORIES = [[0, 2, 1, 4], [3], [5, 5, 2]]
ALIGNED = [5, 0]
ENCODERS = ("bert", "roberta")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(params=TINY)
def name(request):
    return request.param


def test_every_family_has_a_tiny_model():
    assert {family for family, _ in TINY.values()} == set(FAMILIES)


def close_adapters(darec):
    """Every adapter to the identity, and the router to its first branch."""
    for layer in darec.da_layers.values():
        for block in (*layer.relation, layer.recommendation):
            block.adapter.up.weight.data.zero_()
            block.adapter.up.bias.data.zero_()
        if layer.router is not None:
            layer.router.gate.weight.data.zero_()
            layer.router.gate.bias.data.copy_(torch.tensor([60.0, -60.0]))


def hugging_face_states(name, darec, tokens, causal):
    """States [m, d] of one stream by the model's own forward; a token "[SEQ]" or "[ALIGN]" has DARec's embedding."""
    model = hf_model(name)
    words = model.get_input_embeddings().weight
    special = dict(zip(["[SEQ]", "[ALIGN]"], darec.special.detach(), strict=True))
    rows = torch.stack([special[token] if isinstance(token, str) else words[token] for token in tokens])[None]
    mask = {}
    if causal and name in ENCODERS:
        hidden = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
        mask["attention_mask"] = torch.zeros(1, 1, *hidden.shape, dtype=rows.dtype).masked_fill(hidden, -torch.inf)
    return model(inputs_embeds=rows, **mask).last_hidden_state[0]


def sequence(history):
    return [token for item in history for token in (*ITEM_TOKENS[item], "[SEQ]")]


@torch.no_grad()
def test_an_identity_model_with_a_closed_context_branch_is_the_backbone(name):
    """Adapters at the identity, context branch off, causal mask: Hugging Face's own forward, many streams at once.

    The mask is the decoders' own; the encoders get it from outside.
    """
    darec = fast_model(name, model_config(collaborative={"model": "none"})).train()
    close_adapters(darec)
    lengths = np.array([len(history) for history in HISTORIES])
    streams = packer().pack(np.concatenate(HISTORIES), lengths, np.full_like(lengths, -1), np.array(ALIGNED))
    expected = []
    for history in HISTORIES:
        tokens = sequence(history)
        ends = [place for place, token in enumerate(tokens) if token == "[SEQ]"]
        expected.append(hugging_face_states(name, darec, tokens, causal=True)[ends])
    for item in ALIGNED:
        tokens = [*PROMPT, *ITEM_TOKENS[item], "[ALIGN]"]
        expected.append(hugging_face_states(name, darec, tokens, causal=True)[-1:])
    torch.testing.assert_close(darec(streams), torch.cat(expected), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_the_context_mask_over_a_single_item_is_an_encoders_own_mask(name):
    """The span of a stream of one item is the whole stream, which an encoder sees in both directions."""
    darec = fast_model(name, model_config(masks=["context"], collaborative={"model": "none"}))
    close_adapters(darec)
    items = np.arange(len(ITEM_TOKENS))
    streams = packer().pack(items, np.ones_like(items), np.full_like(items, -1), np.array([], dtype=np.int64))
    expected = [hugging_face_states(name, darec, sequence([item]), causal=False)[-1] for item in items]
    torch.testing.assert_close(darec(streams), torch.stack(expected), **TOLERANCE)


def test_a_saved_folder_is_the_same_backbone(name, tmp_path):
    folder = str(save_tiny(tmp_path, ["blue mug", "red mug"], name))
    loaded = load_backbone(folder)
    assert layer_count(folder) == len(loaded.model.layers) == (3 if name == "opt_three_layers" else 2)
    assert position_count(folder) == loaded.model.max_positions
    assert loaded.tokenizer.decode(loaded.tokenizer("red mug", add_special_tokens=False)["input_ids"]) == "red mug"
    assert (loaded.name, loaded.revision) == (folder, None)
    vocabulary = json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    direct = adapted(tiny_model(name, vocabulary=vocabulary)).state_dict()
    assert loaded.model.state_dict().keys() == direct.keys()
    assert all(torch.equal(tensor, direct[key]) for key, tensor in loaded.model.state_dict().items())


def test_nothing_frozen_learns(name):
    darec = fast_model(name, model_config())
    none = np.array([], dtype=np.int64)
    darec(packer().pack(np.array([0, 2]), np.array([2]), np.array([1]), none)).sum().backward()
    assert darec.special.grad is not None
    assert not any(parameter.requires_grad for parameter in darec.backbone.parameters())
    assert not any(module.p for module in darec.modules() if isinstance(module, torch.nn.Dropout))


def test_rotary_angles_keep_their_precision_in_a_model_of_bfloat16():
    positions = torch.arange(500)
    exact = backbone("llama").float().rotation(positions)
    for wanted, found in zip(exact, backbone("llama").bfloat16().rotation(positions), strict=True):
        torch.testing.assert_close(found, wanted, **TOLERANCE)


@torch.no_grad()
@pytest.mark.filterwarnings("error")
def test_half_the_bits_give_nearly_the_same_states(name):
    """And queries, keys and values of one type, which the GPU's attention asks for."""
    config = model_config()
    exact, half = fast_model(name, config).float(), fast_model(name, config).float()
    hold_in(half.backbone, "bfloat16")
    none = np.array([], dtype=np.int64)
    streams = packer().pack(np.array([0, 2, 1]), np.array([2, 1]), np.array([0, 1]), none)
    with autocast("bfloat16", "cpu"):
        states = half(streams)
        rotation = half.backbone.rotation(torch.arange(3))
        qkv = half.backbone.layers[0].qkv(torch.ones(3, half.backbone.hidden), rotation)
    assert [part.dtype for part in qkv] == [torch.bfloat16] * 3
    torch.testing.assert_close(states.float(), exact(streams), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("name", "changes", "positions"),
    [
        ("opt", {}, 512),
        ("gpt2", {}, 512),
        ("roberta", {}, 510),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, 64),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, 512),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0}, 512),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "long_factor": [4.0] * 3,
                    "short_factor": [1.0] * 3,
                    "original_max_position_embeddings": 128,
                }
            },
            128,
        ),
    ],
)
def test_positions_end_where_a_family_stops_seeing_the_whole_stream(tmp_path, name, changes, positions):
    tiny_model(name).save_pretrained(tmp_path)
    change_config(tmp_path, {"layer_types": None, **changes})
    assert position_count(str(tmp_path)) == positions


def test_relative_positions_are_refused(tmp_path):
    folder = save_tiny(tmp_path, ["red mug"], "bert")
    change_config(folder, {"position_embedding_type": "relative_key"})
    with pytest.raises(BadInput, match="position embeddings are 'relative_key'"):
        layer_count(str(folder))


def test_an_unknown_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    with pytest.raises(BadInput, match=r"'bloom' model; known families: bert, gpt2, llama, opt"):
        layer_count(str(tmp_path))


def test_missing_weights_are_refused_not_drawn_at_random(tmp_path):
    folder = save_tiny(tmp_path, ["red mug"], "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"lacks weights \(layers.1.mlp.up_proj.weight\)"):
        load_backbone(str(folder))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "bert"])
def test_a_run_trains_on_a_folder_of_any_family(home, tmp_path, name):
    folder = save_tiny(tmp_path / name, Dataset.open(tiny_data(home)).sentences, name)
    result = run(tiny_run(home, model={"backbone": {"name": str(folder)}}), tmp_path / "run")
    assert result.status == "finished", result.reason
    assert (result.backbone, result.revision) == (str(folder), None)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_run_records_the_commit_of_a_hub_id(home, tmp_path, monkeypatch, revision):
    """The commit behind the newest state, a branch, or itself; read from the hub's cache folder, without a network."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    save_tiny(repository / "snapshots" / COMMIT, Dataset.open(tiny_data(home)).sentences, "opt")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone = {"name": "someone/tiny", "revision": revision}
    result = run(tiny_run(home, model={"backbone": backbone}, optimization={"epochs": 1}), tmp_path / "run")
    assert result.status == "finished", result.reason
    assert (result.backbone, result.revision) == ("someone/tiny", COMMIT)


def change_config(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
