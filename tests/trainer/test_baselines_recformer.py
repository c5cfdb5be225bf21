"""RecFormer: its input by hand, the two stages, and weights from a folder."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny
from tiny_runs import tiny_run
from transformers import AutoConfig, AutoModel

from trainer.baselines import Catalogue, create_baseline
from trainer.baselines.key_value_texts import ItemTexts
from trainer.baselines.recformer import PUBLISHED
from trainer.baselines.sequence import padded
from trainer.config import BaselineConfig
from trainer.data.ragged import Ragged
from trainer.errors import BadInput
from trainer.training.warm import Warm, check_run

SIZES = {"hidden": 16, "inner": 16, "layers": 1, "window": 4, "tokens": 20}
ATTRIBUTES = {"title": ["red mug", "blue saw", "big red saw"], "brand": ["Acme", "", "Cupco"]}


def created(max_items=4, **options):
    catalogue = Catalogue([""] * 3, ATTRIBUTES, "none", Path("unused"))
    config = BaselineConfig(name="recformer", options={**SIZES, **options})
    return create_baseline(config, catalogue, max_items, seed=0).eval()


def texts_of(**limits) -> ItemTexts:
    """A word is the number of its letters; keys are 5 long."""

    def tokenize(texts):
        return [[len(word) for word in text.split()] for text in texts]

    return ItemTexts(ATTRIBUTES, tokenize, first=9, padding=0, **{"most": 3, "longest": 32, **limits})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Longformer with the authors' file of weights, in their names, for five items."""
    folder = save_tiny(tmp_path_factory.mktemp("longformer"), ["red mug", "blue saw"], "bert")
    (folder / "model.safetensors").unlink()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(
        "longformer", vocab_size=400, **sizes, attention_window=[8], max_position_embeddings=40, pad_token_id=0
    )
    config.save_pretrained(folder)
    config.type_vocab_size = 4
    torch.manual_seed(1)
    state = AutoModel.from_config(config).state_dict()
    published = {f"longformer.{name}": tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    published["longformer.embeddings.item_position_embeddings.weight"] = torch.randn(5, 16)
    published |= {"longformer.embeddings.position_ids": torch.arange(40), "item_embedding.weight": torch.randn(7, 16)}
    torch.save(published, folder / PUBLISHED)
    return folder


def test_items_are_keys_and_values_and_histories_begin_with_cls():
    tokens, types, places = (rows[0].tolist() for rows in texts_of().of(Ragged.from_rows([[1, 0]]), 99))
    assert tokens == [9, 5, 4, 3, 5, 3, 3, 5, 4]
    assert types == [0, 1, 2, 2, 1, 2, 2, 1, 2]
    assert places == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    rows = texts_of().of(Ragged.from_rows([[2], [1, 0]]), 5)
    assert [row.tolist() for row in rows[0]] == [[9, 5, 3, 3, 3], [9, 5, 4, 3, 5]]
    assert [row.tolist() for row in rows[2]] == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 2]]
    short = texts_of(most=1, longest=2).of(Ragged.from_rows([[2, 0]]), 99)
    assert short[0][0].tolist() == [9, 5, 3, 5, 3]


def test_the_newest_item_is_read_first():
    model = created()
    seen = []
    model.longformer.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    with torch.no_grad():
        model.last_states(torch.tensor([[0, 1, 0]]), torch.tensor([2]))
    (inputs,) = seen
    words = sorted({"title", "brand", "red", "mug", "blue", "saw", "acme", "big", "cupco"})
    expected = [words.index(word) + 2 for word in ("title", "blue", "saw", "title", "red", "mug", "brand", "acme")]
    table = model.longformer.get_input_embeddings().weight
    places = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
    torch.testing.assert_close(inputs["inputs_embeds"][0, :9], table[[1, *expected]] + model.places(places))
    assert inputs["attention_mask"].tolist() == [[1] * 9 + [0] * 3]
    assert inputs["global_attention_mask"].tolist() == [[1] + [0] * 11]
    assert inputs["token_type_ids"][0, :9].tolist() == [0, 1, 2, 2, 1, 2, 2, 1, 2]


def test_scores_are_cosines_of_what_is_read():
    model = created(temperature=0.5)
    model.begin()
    with torch.no_grad():
        states = model.last_states(torch.tensor([[2]]), torch.tensor([1]))
        scores = model.item_head()(states)[0]
    assert scores[2] == pytest.approx(2, abs=1e-4)  # a history of one item reads as the item does
    expected = torch.cosine_similarity(model.items_id[2][None], model.items_id) / 0.5
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_items_are_encoded_anew_in_the_first_stage_alone():
    model = created(first_stage=2)
    model.begin()
    seen = [model.items_id.clone()]
    for _ in range(4):
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        model.epoch_ended()
        seen.append(model.items_id.clone())
    changed = [not torch.equal(*pair) for pair in pairwise(seen)]
    assert changed == [True, True, False, False]
    assert {"items_id", "epochs"} < set(model.trained_state())


def test_no_gradient_reaches_the_items():
    model = created()
    model.begin()
    weights = torch.ones(1)
    model.loss(torch.tensor([[0, 1]]), torch.tensor([2]), torch.tensor([1]), torch.tensor([2]), weights).backward()
    assert not model.items_id.requires_grad
    assert model.places.weight.grad[2].any()
    assert not model.places.weight.grad[3].any()


def test_the_authors_weights_are_read_from_a_folder(folder):
    model = created(model=str(folder))
    state = torch.load(folder / PUBLISHED, weights_only=True)
    assert torch.equal(model.places.weight, state["longformer.embeddings.item_position_embeddings.weight"])
    for name, tensor in model.longformer.state_dict().items():
        assert torch.equal(tensor, state[f"longformer.{name}"]), name
    model.begin()
    assert model.items_id.any()


@pytest.mark.parametrize(
    ("spoil", "options", "sentence"),
    [
        (None, {"window": 3}, "baseline.options.window: Input should be a multiple of 2"),
        (None, {"tokens": 60}, "baseline.options.tokens: 60 are more than the 40 positions of '.*' hold"),
        (None, {}, f"{PUBLISHED} knows 4 items of a history; lower data.max_items to that"),
        ("damage", {}, f"{PUBLISHED} is no file of tensors"),
        ("lose", {}, f"{PUBLISHED} does not fit the folder's config.json .encoder.layer.0"),
        ("bert", {}, r"baseline.options.model '.*': cannot be loaded .is a 'bert' model"),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(folder, tmp_path, spoil, options, sentence):
    used = tmp_path / "model"
    used.mkdir()
    for file in folder.iterdir():
        (used / file.name).write_bytes(file.read_bytes())
    if spoil == "damage":
        (used / PUBLISHED).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    if spoil == "lose":
        state = torch.load(folder / PUBLISHED, weights_only=True)
        lost = next(name for name in state if "encoder.layer.0" in name)
        torch.save({name: tensor for name, tensor in state.items() if name != lost}, used / PUBLISHED)
    if spoil == "bert":
        AutoConfig.for_model("bert").save_pretrained(used)
    options = {**SIZES, "model": str(used), **options}
    config = tiny_run(tmp_path, data={"max_items": 4 if spoil else 8}).model_copy(
        update={"baseline": BaselineConfig(name="recformer", options=options)}
    )
    with pytest.raises(BadInput, match=sentence):
        check_run(config, Warm())


def test_histories_longer_than_the_tokens_lose_their_oldest_items():
    model = created(tokens=8)
    with torch.no_grad():
        one, other = (model.last_states(torch.tensor([[old, 2, 1]]), torch.tensor([3])) for old in (0, 1))
    torch.testing.assert_close(one, other)
    assert np.isfinite(one.numpy()).all()


def test_many_histories_are_read_a_few_at_a_time():
    model = created()
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 3, rng.integers(1, 5)) for _ in range(150)]
    ids, lengths = map(torch.from_numpy, padded(Ragged.from_rows(rows)))
    sizes = []
    model.longformer.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(len(inputs["inputs_embeds"])), with_kwargs=True
    )
    with torch.no_grad():
        together = model.last_states(ids, lengths)
    assert sum(sizes) == 150
    assert max(sizes) <= 64
    with torch.no_grad():
        alone = [model.last_states(ids[i : i + 1], lengths[i : i + 1]) for i in range(150)]
    torch.testing.assert_close(together, torch.cat(alone))
