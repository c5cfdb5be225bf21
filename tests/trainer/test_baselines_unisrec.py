"""UniSRec: its formulas by hand, its texts, and what pre-training leaves behind."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training_resume import outcome, train
from tiny_models import save_tiny
from tiny_runs import tiny_data, tiny_run

from trainer.baselines import Catalogue, create_baseline
from trainer.baselines.contrastive import _altered, _contrast
from trainer.baselines.item_text import item_vectors
from trainer.baselines.text_adaptor import Adaptor, AdaptorOptions
from trainer.baselines.unisrec import UniSRecOptions, pretrained_folder
from trainer.config import BaselineConfig
from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged
from trainer.errors import BadInput
from trainer.training.warm import Warm, check_run

SIZES = {"hidden": 16, "inner": 16, "experts": 2, "dropout": 0.0, "adaptor_dropout": 0.0}
MAX_ITEMS = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unisrec")
    tiny_data(folder)
    return folder


@pytest.fixture(scope="module")
def catalogue(home):
    return Catalogue.of(Dataset.open(tiny_data(home)), home / "cache")


@pytest.fixture(scope="module")
def encoder(home, catalogue) -> str:
    return str(save_tiny(home / "bert", list(catalogue.sentences), "bert"))


@pytest.fixture(scope="module")
def pretraining(home) -> dict:
    """Over the dataset itself and another one."""
    other = tiny_data(home / "other", users=60, items=90)
    return {"datasets": [str(tiny_data(home)), str(other)], "epochs": 6, "batch_size": 32, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def options(encoder, pretraining) -> dict:
    return {**SIZES, "encoder": encoder, "pretraining": pretraining}


@pytest.fixture(scope="module")
def pretrained(catalogue, options):
    asked = UniSRecOptions.model_validate(options)
    return pretrained_folder(catalogue.cache, asked, asked.pretraining, MAX_ITEMS)


def created(catalogue, max_items=MAX_ITEMS, **options):
    config = BaselineConfig(name="unisrec", options={**SIZES, **options})
    return create_baseline(config, catalogue, max_items, seed=0).eval()


def test_adaptor_against_the_formula():
    torch.manual_seed(0)
    adaptor = Adaptor(5, AdaptorOptions(hidden=4, heads=2, experts=3)).eval()
    for parameter in adaptor.parameters():
        parameter.data.normal_()
    text = torch.randn(5)
    gates = (text @ adaptor.gate_wg).softmax(0)
    experts = zip(gates, adaptor.bias_gw, adaptor.weight_gwd, strict=True)
    expected = sum(gate * ((text - shift) @ weight) for gate, shift, weight in experts)
    torch.testing.assert_close(adaptor(text[None, None])[0, 0], expected)
    adaptor.train()
    assert not torch.equal(adaptor(text), adaptor(text))


@pytest.mark.parametrize("ids", [True, False])
def test_scores_are_cosines_over_the_temperature(catalogue, ids):
    model = created(catalogue, ids=ids, temperature=0.5)
    inputs, lengths = torch.tensor([[3, 1, 4]]), torch.tensor([3])
    with torch.no_grad():
        head, states = model.item_head(), model(inputs, lengths)
        scores = head(states)
        items = model.sequences.adaptor(model.text_iw) + (model.ids.weight if ids else 0)
        h = model.sequences.encoder(items[inputs], torch.ones(3, 3, dtype=torch.bool).tril())
        expected = torch.cosine_similarity(h[0, 2][None], items) / 0.5
    torch.testing.assert_close(scores[0, 2], expected)
    assert ("ids.weight" in model.trained_state()) is ids
    assert "text_iw" not in model.trained_state()


def test_texts_by_an_encoder_are_pooled_as_asked(catalogue, encoder):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        states = model(**tokenizer(catalogue.sentences[5], return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(item_vectors(catalogue, encoder, "cls")[5], states[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(item_vectors(catalogue, encoder, "mean")[5], states.mean(0), atol=1e-5, rtol=1e-4)


def test_words_are_left_out_of_texts_for_the_pretraining(catalogue):
    whole, altered = (item_vectors(catalogue, "tfidf", "mean", share) for share in (0.0, 0.5))
    assert whole.square().mean() == pytest.approx(1, abs=1e-3)
    assert len(whole) == len(altered)
    assert not torch.equal(whole[:, :2], altered[:, :2])


def test_altered_sequences_lose_items_or_words_and_are_never_empty():
    rows = Ragged.from_rows([np.arange(length) for length in [1, 2, 30] * 40])
    altered = _altered(rows, 100, 0.3, np.random.default_rng(0))
    by_words = [row.min() >= 100 for row in altered]
    assert 30 < sum(by_words) < 90
    for before, after, words in zip(rows, altered, by_words, strict=True):
        assert len(after)
        assert (after == before + 100).all() if words else set(after) <= set(before)
    kept = sum(len(row) for row, words in zip(altered, by_words, strict=True) if not words and len(row) > 2)
    assert kept / (30 * sum(not words and len(row) > 2 for row, words in zip(altered, by_words, strict=True))) < 0.85


def test_the_contrast_leaves_out_rivals_with_the_same_next_item():
    torch.manual_seed(0)
    states, others = torch.randn(3, 4), torch.randn(3, 4)
    e = (states @ others.T / 0.5).exp()
    expected = -(
        (e[0, 0] / (e[0, 0] + e[0, 1])).log() + (e[1, 1] / e[1].sum()).log() + (e[2, 2] / (e[2, 2] + e[2, 1])).log()
    )
    torch.testing.assert_close(_contrast(states, others, torch.tensor([7, 8, 7]), 0.5), expected / 3)


def test_pretraining_learns_over_all_datasets(pretrained):
    losses = json.loads((pretrained / "losses.json").read_text())
    assert len(losses) == 6
    assert losses[-1] < losses[0] < 2 * math.log(32)


def test_a_run_begins_with_what_was_pretrained_and_leaves_the_transformer_as_it_is(home, options, pretrained, tmp_path):
    config = tiny_run(home).model_copy(update={"baseline": BaselineConfig(name="unisrec", options=options)})
    training = train(config, Warm(), tmp_path / "one")
    trained = training.model.trained_state()
    before = load_file(pretrained / "unisrec.safetensors")
    moved = {name for name, tensor in before.items() if not torch.equal(trained[f"sequences.{name}"], tensor)}
    assert moved == {"adaptor.bias_gw", "adaptor.weight_gwd", "adaptor.gate_wg", "adaptor.noise_wg"}
    given = {**options, "pretraining": None, "pretrained": str(pretrained)}
    config = config.model_copy(update={"baseline": BaselineConfig(name="unisrec", options=given)})
    assert outcome(train(config, Warm(), tmp_path / "two")) == outcome(training)


def test_a_transformer_may_be_tuned_too_and_read_shorter_sequences(catalogue, encoder, pretrained):
    model = created(catalogue, 5, encoder=encoder, pretrained=str(pretrained), fix_encoder=False)
    assert model.sequences.encoder.position.shape == (5, 16)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"encoder": "tfidf"}, "baseline.options: TF-IDF means another thing on every dataset"),
        ({"pretrained": "x"}, "baseline.options: name `pretraining` or `pretrained`, not both"),
        ({"encoder": "/nowhere"}, "baseline.options.encoder '/nowhere': cannot be loaded"),
        ({"pretraining": None, "pretrained": "/nowhere"}, "baseline.options.pretrained '/nowhere'.* cannot be read"),
        ({"hidden": 8}, None),
        ({"pretraining": {"datasets": ["/nowhere"]}}, "/nowhere: is no dataset folder"),
        (
            {"pretraining": {"datasets": ["s3://me:secret@x/y"]}},
            "baseline.options.pretraining.datasets.0: .*credential",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(home, options, pretrained, changed, sentence):
    if sentence is None:
        changed = {**changed, "pretraining": None, "pretrained": str(pretrained)}
        sentence = "baseline.options.pretrained '.*': adaptor.weight_gwd has another size"
    config = tiny_run(home).model_copy(
        update={"baseline": BaselineConfig(name="unisrec", options={**options, **changed})}
    )
    with pytest.raises(BadInput, match=sentence):
        check_run(config, Warm())
