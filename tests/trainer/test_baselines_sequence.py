"""Sequence baselines: one suite over every registered one, and what each promises beyond it."""

import numpy as np
import pytest
import torch
from test_training_resume import Killed, outcome, train
from tiny_runs import tiny_data, tiny_run

from trainer.baselines import BASELINES, Catalogue, baseline_options, create_baseline
from trainer.baselines.fdsa import FDSAOptions, item_features
from trainer.baselines.sequence import Asked, padded
from trainer.config import BaselineConfig, RunConfig
from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged
from trainer.errors import BadInput
from trainer.inference import restore_baseline
from trainer.metrics import ranking_metrics
from trainer.ranking import Ranked
from trainer.training.model_file import load_model
from trainer.training.run import run
from trainer.training.sequence import SequenceTask, rank_histories
from trainer.training.warm import Warm
from trainer.training.workers import Workers

SMALL = {
    "gru4rec": {"embedding": 16, "hidden": 16},
    "sasrec": {"hidden": 16, "inner": 16},
    "bert4rec": {"hidden": 16, "inner": 16},
    "fdsa": {"hidden": 16, "inner": 16},
    "unisrec": {"hidden": 16, "inner": 16, "experts": 2},
    "p5": {"hidden": 16, "inner": 32, "layers": 1, "heads": 2},
    "recformer": {"hidden": 32, "inner": 64, "layers": 1, "window": 16, "tokens": 64, "first_stage": 2},
}
N_ITEMS, MAX_ITEMS = 30, 6


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="module", params=sorted(BASELINES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def catalogue(home):
    """Items of which two have a brand, and three a word of the title."""
    attributes = {
        "title": [f"thing {item % 7} of {item % 10}" for item in range(N_ITEMS)],
        "brand": [f"Brand {item // 2}" if item < 20 else "" for item in range(N_ITEMS)],
    }
    sentences = [f"title {title}" for title in attributes["title"]]
    return Catalogue(sentences, attributes, "digest of these", home / "cache")


@pytest.fixture
def created(catalogue):
    """A model by its name and what is not as usual, in evaluation mode."""

    def create(name, max_items=MAX_ITEMS, **changed):
        config = BaselineConfig(name=name, options={**SMALL[name], **changed})
        model = create_baseline(config, catalogue, max_items, seed=0).eval()
        model.begin()
        return model

    return create


@pytest.fixture
def model(name, created):
    return created(name)


def config_of(home, name, changed=None, **sections) -> RunConfig:
    optimization = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "schedule": "constant"}
    baseline = {"name": name, "options": {**SMALL[name], **(changed or {})}}
    return tiny_run(home, **{"optimization": optimization, **sections}).model_copy(
        update={"baseline": BaselineConfig.model_validate(baseline)}
    )


def rows(*lengths, seed=0) -> Ragged:
    rng = np.random.default_rng(seed)
    return Ragged.from_rows([rng.integers(0, N_ITEMS, length) for length in lengths])


def ranked(model, histories: Ragged, targets) -> Ranked:
    matrix, lengths = padded(model.question(histories))
    asked = Asked(torch.from_numpy(matrix), torch.from_numpy(lengths), np.asarray(targets, np.int32))
    return model.rank([asked], likelihood=True)


def test_every_registered_one_is_tested():
    assert SMALL.keys() == BASELINES.keys()


def test_a_run_learns_and_its_model_file_reproduces_its_metrics(home, name, tmp_path):
    config = config_of(home, name)
    result = run(config, tmp_path, keep_model=True)
    assert result.status == "finished", result.reason
    assert result.curve[-1]["loss/total"] < result.curve[0]["loss/total"]
    dataset = Dataset.open(tiny_data(home))
    assert (result.fingerprint, result.backbone) == (dataset.fingerprint, None)
    trained = restore_baseline(config, load_model(tmp_path / "model.safetensors"), dataset)
    found = ranking_metrics(trained.ranks(dataset, "validation"))
    assert found == pytest.approx({metric: result.metrics[metric] for metric in found}, abs=1e-6)


def test_what_was_seen_makes_room_for_others(model):
    histories, targets = rows(3, 9, 6, 1), np.array([4, 15, 7, 11], np.int32)
    how = {"device": "cpu", "workers": Workers(0, 1), "max_items": 5}
    everything = rank_histories(model, histories, targets, **how).ranks
    rest = rank_histories(model, histories, targets, **how, exclude_seen=True).ranks
    for user, history in enumerate(histories):
        others = np.setdiff1d(history, targets[[user]]).astype(np.int32)
        same = histories.take(np.full(len(others), user))
        above = rank_histories(model, same, others, **how).ranks
        tied = everything[user] % 1 or (above == everything[user]).any()
        assert tied or rest[user] == everything[user] - (above < everything[user]).sum()
        assert rest[user] <= everything[user]


def test_a_circle_of_items_is_learnt_by_heart(home, name, tmp_path):
    """After item i comes i + 1: whoever reads the last item knows the next. Guessing would have an MRR of 0.06."""
    config = config_of(home, name, {"dropout": 0.0})
    task = SequenceTask(config, Warm().judged(config), "cpu", Workers(0, 1))
    circle = Ragged.from_rows([(start + np.arange(7)) % 80 for start in range(80)])
    task._histories, task.steps_per_epoch = circle, 5
    task.begin()
    optimizer = torch.optim.Adam([p for p in task.model.parameters() if p.requires_grad], 5e-3)
    targets = ((np.arange(80) + 6) % 80).astype(np.int32)
    asked = Ragged.from_rows([row[:6] for row in circle])
    mrr = 0.0
    for epoch in range(60):
        for step in task.steps(epoch, 0):
            optimizer.zero_grad()
            sum(weight * task.losses(part)["total"] for part, weight in step.parts).backward()
            optimizer.step()
        task.model.epoch_ended()
        if epoch % 5 == 4:
            ranks = rank_histories(task.model.eval(), asked, targets, "cpu", Workers(0, 1), max_items=6).ranks
            mrr = ranking_metrics(ranks)["mrr"]
            task.model.train()
        if mrr > 0.4:
            break
    assert mrr > 0.4


def test_a_run_that_was_killed_within_an_epoch_goes_on_bit_for_bit(home, name, tmp_path):
    config, warm = config_of(home, name, execution={"checkpoint_steps": 3}), Warm()
    with pytest.raises(Killed):
        train(config, warm, tmp_path / "killed", kill_at=5)
    assert outcome(train(config, warm, tmp_path / "killed")) == outcome(train(config, warm, tmp_path / "whole"))


def test_workers_and_parts_share_a_batch_without_loss(home, name):
    """The parts' gradients add up to the whole batch's (in evaluation mode, where nothing is dropped out)."""
    whole, shared = config_of(home, name), config_of(home, name, execution={"accumulation": 2})
    judged = Warm().judged(whole)

    def gradients(config, world):
        found: dict[str, torch.Tensor] = {}
        for rank in range(world):
            task = SequenceTask(config, judged, "cpu", Workers(rank, world))
            task.begin()
            task.model.eval()
            for part, weight in next(task.steps(0, 0)).parts:
                (weight * task.losses(part)["total"]).backward()
            for key, parameter in task.model.named_parameters():
                if parameter.grad is not None:
                    found[key] = found.get(key, 0) + parameter.grad
        return found

    expected, got = gradients(whole, 1), gradients(shared, 3)
    assert expected.keys() == got.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(got[key], gradient, atol=1e-6, rtol=1e-4)


def test_neighbours_in_a_batch_and_padding_change_nothing(model):
    histories, targets = rows(1, 6, 3, 2), np.array([4, 0, 29, 4])
    together = ranked(model, histories, targets)
    alone = [ranked(model, histories.take(np.array([row])), targets[[row]]) for row in range(4)]
    likelihoods = torch.cat([part.log_likelihoods for part in alone])
    torch.testing.assert_close(together.log_likelihoods, likelihoods, atol=1e-5, rtol=1e-5)
    assert torch.equal(together.ranks, torch.cat([part.ranks for part in alone]))


def test_ranks_are_those_of_the_likelihoods_of_all_items(name, created):
    """Literally: every item is asked for, and the target's place is counted. P5 has as many beams as items here."""
    model = created(name, **({"beams": N_ITEMS} if name == "p5" else {}))
    histories, targets = rows(4, 2, 6), [3, 17, 29]
    every = Ragged.join(histories.take(np.full(N_ITEMS, row)) for row in range(3))
    likelihoods = ranked(model, every, np.tile(np.arange(N_ITEMS), 3)).log_likelihoods.view(3, N_ITEMS)
    expected = [int((row > row[target] + 1e-6).sum()) + 1 for row, target in zip(likelihoods, targets, strict=True)]
    assert ranked(model, histories, targets).ranks.tolist() == expected


def test_histories_of_any_length_up_to_the_longest_can_be_asked_and_learnt(model):
    histories = rows(2, MAX_ITEMS + 1)
    examples = model.examples(histories, np.random.default_rng(0))
    inputs_bt, lengths_b = map(torch.from_numpy, padded(examples.inputs))
    row = examples.inputs.row_of_value[examples.places]
    places = torch.from_numpy(row * inputs_bt.shape[1] + examples.places - examples.inputs.offsets[row])
    targets = torch.from_numpy(examples.targets)
    assert torch.isfinite(model.loss(inputs_bt, lengths_b, places, targets, torch.ones(len(targets))))
    assert torch.isfinite(ranked(model, rows(1, MAX_ITEMS), [0, 1]).log_likelihoods).all()
    assert len(examples.places) == len(examples.targets)
    assert (np.diff(examples.places) > 0).all()
    assert (examples.targets < N_ITEMS).all()


@pytest.mark.parametrize("causal", ["gru4rec", "sasrec", "fdsa", "unisrec"])
def test_states_know_nothing_of_later_items(causal, created):
    model = created(causal)
    one, other = (torch.tensor([[3, 1, 4, last]]) for last in (1, 5))
    lengths = torch.tensor([4])
    with torch.no_grad():
        torch.testing.assert_close(model(one, lengths)[:, :3], model(other, lengths)[:, :3])
        assert not torch.allclose(model(one, lengths)[:, 3], model(other, lengths)[:, 3])


def test_causal_examples_are_every_item_with_the_one_that_follows(created):
    examples = created("sasrec").examples(Ragged.from_rows([[1, 2, 3], [4, 5]]), np.random.default_rng(0))
    assert [list(row) for row in examples.inputs] == [[1, 2], [4]]
    assert (list(examples.places), list(examples.targets)) == ([0, 1, 2], [2, 3, 5])


def test_bert4rec_masks_the_share_it_was_told_and_asks_by_a_mask_at_the_end(created):
    model = created("bert4rec", 50, mask_fraction=0.3, last_only=0.0)
    histories = rows(*[40] * 50)
    examples = model.examples(histories, np.random.default_rng(0))
    masked = examples.inputs.values == N_ITEMS
    assert masked.mean() == pytest.approx(0.3, abs=0.03)
    assert list(np.flatnonzero(masked)) == list(examples.places)
    assert list(histories.values[masked]) == list(examples.targets)
    assert list(examples.inputs.values[~masked]) == list(histories.values[~masked])
    assert [list(row) for row in model.question(Ragged.from_rows([[1, 2], [3]]))] == [[1, 2, N_ITEMS], [3, N_ITEMS]]
    mostly_last = created("bert4rec", 50, mask_fraction=0.3, last_only=0.99)
    last = mostly_last.examples(rows(5, 5, 5), np.random.default_rng(0))
    assert list(last.places) == [4, 9, 14]


@pytest.mark.parametrize(
    ("baseline", "sentence"),
    [
        ({"name": "sasrek"}, "baseline.name: there is no 'sasrek'; choose one of popularity, .*, gru4rec, sasrec"),
        ({"name": "sasrec", "options": {"hiden": 3}}, "baseline.options.hiden: unknown option; check its spelling"),
        ({"name": "sasrec", "options": {"heads": 3}}, r"baseline.options: heads \(3\) must divide hidden \(64\)"),
        ({"name": "gru4rec", "options": {"dropout": 1.0}}, "baseline.options.dropout: Input should be less than 1"),
    ],
)
def test_a_wrong_baseline_is_refused_in_one_sentence(baseline, sentence):
    with pytest.raises(BadInput, match=sentence):
        baseline_options(BaselineConfig.model_validate(baseline))


def test_fdsa_features_by_hand():
    attributes = {
        "title": ["Red saw", "saw, blue RED", "lamp"],
        "brand": ["Acme Tools", " acme tools", ""],
        "size": "abc",
    }
    features = item_features(attributes, FDSAOptions(longest=2))
    assert features.tolist() == [[[1, 0], [2, 3]], [[1, 0], [3, 2]], [[0, 0], [0, 0]]]
    sizes = item_features(attributes, FDSAOptions(values=("size",), words=("brand",), fewest=1))
    assert sizes.tolist() == [[[1, 0], [4, 5]], [[2, 0], [4, 5]], [[3, 0], [0, 0]]]


def test_fdsa_reads_the_features(created):
    """Items of the same features differ by their ids alone, and a feature that changes changes the state."""
    model = created("fdsa")
    with torch.no_grad():
        before = model._attended(torch.tensor([[0, 1, 2]]))
        model.features[model.features_iaw[0, 0, 0]] += 1
        after = model._attended(torch.tensor([[0, 1, 2]]))
    assert (after != before).any(-1).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"words": ["colour"]}, "baseline.options.words: the dataset has no attribute 'colour'; it has title, brand"),
        ({"fewest": 99}, "baseline.options.fewest: no feature is had by 99 items"),
    ],
)
def test_fdsa_refuses_what_the_items_do_not_have(created, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        created("fdsa", **options)
