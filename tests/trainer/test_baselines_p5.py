"""P5: names, prompts and beams by hand, and a T5 from a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny
from tiny_runs import tiny_run
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from trainer.baselines import Catalogue, create_baseline
from trainer.baselines.p5 import _digit_names
from trainer.baselines.sequence import Asked
from trainer.baselines.trie import Trie
from trainer.config import BaselineConfig
from trainer.data.ragged import Ragged
from trainer.errors import BadInput
from trainer.training.run import run
from trainer.training.warm import Warm, check_run

SIZES = {"hidden": 16, "inner": 32, "layers": 1, "heads": 2}


def created(n_items=300, **options):
    catalogue = Catalogue([""] * n_items, {}, "none", Path("unused"))
    return create_baseline(BaselineConfig(name="p5", options={**SIZES, **options}), catalogue, 6, seed=0).eval()


def save_tiny_t5(folder: Path) -> Path:
    """A T5 whose tokenizer writes digits and knows no word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *"0123456789"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=20, **sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return save_tiny_t5(tmp_path_factory.mktemp("t5"))


def test_names_are_pairs_of_digits():
    names = _digit_names(4385)
    assert names[0].tolist() == [4, 4, 1]
    assert names[4321].tolist() == [4 + 43, 4 + 21, 1]
    assert _digit_names(100)[99].tolist() == [4 + 99, 1]
    assert _digit_names(10_001)[10_000].tolist() == [4 + 1, 4, 4, 1]


def test_a_beam_search_over_few_names_by_hand():
    """Item 1's name is longer; p(item) is the product of its tokens' probabilities."""
    trie = Trie([[1, 2], [3, 1, 2], [3, 2]])
    of_next = {(): [0, 0.6, 0, 0.4], (1,): [0, 0.3, 0.7, 0], (3,): [0, 0.9, 0.1, 0], (3, 1): [0, 0, 0.5, 0.5]}

    def likelihoods(prefixes):
        rows = [of_next.get(tuple(prefix), [0.25] * 4) for prefix in prefixes.tolist()]
        return torch.tensor(rows).log()

    items, scores = trie.search(likelihoods, 1, 5)
    assert items[0, :3].tolist() == [0, 1, 2]
    assert (items[0, 3:] == -1).all()
    torch.testing.assert_close(scores[0, :3].exp(), torch.tensor([0.42, 0.18, 0.04]))
    narrow, _ = trie.search(likelihoods, 2, 1)
    assert narrow.tolist() == [[0], [0]]


@pytest.mark.parametrize(("names", "problem"), [([[1], [1]], "same name"), ([[1], [1, 2]], "begins another")])
def test_a_tree_refuses_names_that_cannot_be_told_apart(names, problem):
    with pytest.raises(ValueError, match=problem):
        Trie(names)


def test_a_prompt_holds_the_items_between_its_words_with_their_numbers():
    tokens, words = created()._prompt(np.array([256, 7]))
    assert tokens.tolist() == [2, 4 + 2, 4 + 56, 4 + 0, 4 + 7, 3, 1]
    assert words.tolist() == [0, 1, 1, 2, 2, 0, 0]


def test_ranks_within_the_beams_are_places_and_outside_all_others_tie():
    model, history = created(beams=12), torch.tensor([[5, 250, 31]])
    with torch.no_grad():
        items, scores = (found[0] for found in model.best(history, torch.tensor([3])))
    assert len(set(items.tolist())) == 12
    assert (scores.diff() <= 0).all()
    targets = [*items.tolist(), next(item for item in range(300) if item not in items)]
    rows = history.expand(len(targets), -1)
    ranked = model.rank([Asked(rows, torch.full((13,), 3), np.array(targets, np.int32))], likelihood=True)
    assert ranked.ranks.tolist() == [*range(1, 13), 13 + (300 - 13) / 2]
    torch.testing.assert_close(ranked.log_likelihoods[:12].float(), scores, atol=1e-4, rtol=1e-4)
    assert ranked.log_likelihoods[12] < scores.max()


def test_items_that_are_left_out_take_beams_and_no_places():
    model, history = created(beams=12), torch.tensor([[5, 250, 31]])
    with torch.no_grad():
        items = model.best(history, torch.tensor([3]))[0][0].tolist()
    targets = [items[4], next(item for item in range(300) if item not in items)]
    seen = Ragged.from_rows([[items[0], items[2], items[0], items[9]]] * 2)
    asked = Asked(history.expand(2, -1), torch.full((2,), 3), np.array(targets, np.int32), seen)
    assert model.rank([asked], likelihood=False).ranks.tolist() == [3, 10 + (297 - 10) / 2]


def test_one_item_of_every_history_is_learnt_and_all_in_time():
    histories = Ragged.from_rows([[1, 2, 3], [4, 5]])
    seen = set()
    for seed in range(20):
        examples = created().examples(histories, np.random.default_rng(seed))
        inputs = [tuple(row) for row in examples.inputs]
        assert list(examples.places) == [len(inputs[0]) - 1, len(inputs[0]) + len(inputs[1]) - 1]
        seen |= set(zip(inputs, examples.targets.tolist(), strict=True))
    assert seen == {((1,), 2), ((1, 2), 3), ((4,), 5)}


def test_a_t5_of_a_folder_is_fine_tuned(tmp_path, t5):
    options = {"model": str(t5)}
    config = tiny_run(tmp_path).model_copy(update={"baseline": BaselineConfig(name="p5", options=options)})
    check_run(config, Warm())
    result = run(config, tmp_path / "run")
    assert result.status == "finished", result.reason
    assert result.curve[-1]["loss/total"] < result.curve[0]["loss/total"]
    model = created(30, **options)
    own = T5ForConditionalGeneration.from_pretrained(t5)
    assert torch.equal(model.t5.shared.weight, own.shared.weight)
    assert [name.tolist() for name in model._names][:2] == [[3, 1], [4, 1]]
    assert model._names[29].tolist() == [5, 12, 1]


def test_what_is_no_t5_is_refused_before_training(tmp_path, t5):
    bert = save_tiny(tmp_path / "bert", ["red mug"], "bert")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for folder, sentence in [(bert, r"cannot be loaded \(is a 'bert' model\)"), (nothing, "cannot be loaded")]:
        config = tiny_run(tmp_path).model_copy(
            update={"baseline": BaselineConfig(name="p5", options={"model": str(folder)})}
        )
        with pytest.raises(BadInput, match=f"baseline.options.model '.*': {sentence}"):
            check_run(config, Warm())
