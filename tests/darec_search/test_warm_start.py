"""Old studies as knowledge to begin with: what counts as a result, what as a prior mean, and what is refused."""

import json
import shutil

import pytest
from study_folders import LEVELS, new_study

from darec_search import arms, samplers, warm_start
from darec_search.card import Card
from darec_search.controller import search
from darec_search.runners.simulated import SimulatedRunner
from darec_search.space import Point, SearchSpace
from darec_search.study import Study
from trainer.architecture import Architecture
from trainer.errors import BadInput
from trainer.training.result import RunResult

TRIALS = 8
FASTER = {"epochs": 8, "learning_rate": 0.5}
"""Another task: the outcomes of trials depend on it."""
QUICK = {
    "ax_bayes": {"start": 4, "bank": 16},
    "prob_reparam": {"starts": 4, "samples": 8, "steps": 5, "fit_steps": 5},
}


def outcome(spec):
    value = sum(spec.bits[::2]) / 10 - sum(spec.bits[1::2]) / 20 - abs(spec.weights.get("align", 0.1) - 0.1)
    return 1.0, RunResult(status="finished", metrics={"mrr": value, "log_likelihood": 10 * value})


def study(folder, old=(), sampler="ax_bayes", layers=2, trials=TRIALS, levels=(), seed=0, **fields):
    document = {"sampler": sampler, "sampler_options": QUICK.get(sampler, {})}
    document |= {"trials": trials, "weights": {"align": list(levels)}}
    document |= {"warm_start": [str(one.folder) for one in old], **fields.pop("search", {})}
    return new_study(folder, layers, search=document, seed=seed, **fields)


def run(study, of=outcome):
    with SimulatedRunner(study, of) as runner:
        search(study, runner)
    return [trial.spec for trial in study.trials()]


def told(study):
    """A fresh sampler with what the study starts from."""
    sampler = samplers.create("ax_bayes", study.space, 0, **QUICK["ax_bayes"])
    warm_start.tell(sampler, study, study.space, {}, warm_start.trial_fidelity(study.config))
    return sampler


@pytest.fixture
def old(tmp_path):
    """A study of eight trials that is over."""
    found = study(tmp_path / "old", sampler="random")
    run(found)
    return found


def test_trials_of_the_same_task_are_results(tmp_path, old):
    new = study(tmp_path / "new", [old])
    sampler = told(new)
    values = {trial.spec.point: trial.result.metrics["mrr"] for trial in old.trials()}
    assert {o.point.bits: o.value for o in sampler.history.observations} == {p.bits: v for p, v in values.items()}
    asked = run(new)
    assert not {spec.bits for spec in asked} & {point.bits for point in values}
    assert len(asked) == TRIALS


@pytest.mark.parametrize("sampler", ["random", "optuna_tpe", "prob_reparam"])
def test_every_sampler_takes_results(tmp_path, old, sampler):
    asked = run(study(tmp_path / "new", [old], sampler=sampler))
    assert not {spec.bits for spec in asked} & {trial.spec.bits for trial in old.trials()}


def test_what_is_promoted_may_come_from_the_old_study(tmp_path, old):
    new = study(tmp_path / "new", [old], sampler="random", trials=1)
    run(new, lambda spec: (1.0, RunResult(status="finished", metrics={"mrr": -1.0})))
    best = max(old.trials(), key=lambda trial: trial.result.metrics["mrr"])
    assert arms.candidates(new)["best-1"].bits == best.spec.bits


def test_another_task_becomes_a_prior_mean_and_its_best_is_tried_first(tmp_path, old):
    new = study(tmp_path / "new", [old], optimization=FASTER)
    sampler = told(new)
    assert not sampler.history.observations
    assert sampler.ask().bits in {trial.spec.bits for trial in old.trials()}
    assert run(new)[0].bits == sampler.ask().bits


def test_a_seed_matters_only_where_it_draws_the_users(tmp_path, old):
    same = old.environment["identity"]
    (taken,) = warm_start.old_studies(study(tmp_path / "new", [old], seed=5))
    part = taken.fidelity
    assert taken.differences({**same, "seed": 5}, part) == ["seed"]
    whole = part.model_copy(update={"users_fraction": 1.0})
    assert taken.model_copy(update={"fidelity": whole}).differences({**same, "seed": 5}, whole) == []
    assert taken.differences(same, whole) == ["fidelity.users_fraction"]
    assert taken.differences({**same, "losses": {**same["losses"], "align": 9.0}}, part) == []
    assert taken.differences({**same, "fingerprint": "other"}, part) == ["fingerprint"]


def test_loss_weights_decide_which_trials_are_results(tmp_path):
    before = study(tmp_path / "old", sampler="random", levels=LEVELS, search={"strategy": "joint"}, trials=16)
    run(before)
    new = study(tmp_path / "new", [before], levels=LEVELS[:2], search={"strategy": "joint"})
    results = told(new).history.observations
    assert {o.point.weights["align"] for o in results} == set(LEVELS[:2])
    assert len(results) == sum(trial.spec.weights["align"] in LEVELS[:2] for trial in before.trials())
    run(new)
    (use,) = warm_start.check(new.config, new.fingerprint, 2, None)
    assert (use.results, use.related, use.differs) == (len(results), 16 - len(results), [])


def test_an_old_study_without_the_searched_loss_weight_is_prior_knowledge(tmp_path, old):
    new = study(tmp_path / "new", [old], levels=(0.02, 1.0), search={"strategy": "joint"})
    sampler = told(new)
    assert not sampler.history.observations
    assert run(new)[0].bits == sampler.ask().bits


def test_a_study_that_is_resumed_needs_the_old_folder_no_more(tmp_path, old):
    whole = run(study(tmp_path / "whole", [old]))
    first = study(tmp_path / "new", [old], trials=3)
    run(first)
    shutil.rmtree(old.folder)
    assert [spec.bits for spec in run(study(tmp_path / "new", [old]))] == [spec.bits for spec in whole]
    with pytest.raises(BadInput, match=r"search\.warm_start: .*no study folder"):
        warm_start.old_studies(study(tmp_path / "another", [old]))


def test_an_old_study_that_goes_on_changes_nothing(tmp_path, old):
    new = study(tmp_path / "new", [old])
    taken = warm_start.old_studies(new)
    run(study(old.folder, sampler="random", trials=TRIALS + 4))
    assert warm_start.old_studies(Study.load(new.folder)) == taken
    assert len(taken[0].trials) == TRIALS


def test_a_study_without_old_ones_records_none(tmp_path):
    new = study(tmp_path / "new", sampler="random")
    run(new)
    assert not (new.folder / warm_start.RECORD).exists()


def test_samplers_that_learn_from_results_alone_refuse_other_tasks(tmp_path, old):
    new = study(tmp_path / "new", [old], sampler="random", optimization=FASTER)
    with pytest.raises(
        BadInput, match=r"search\.warm_start: .*differs in optimization\.learning_rate.*random.*ax_bayes"
    ):
        warm_start.check(new.config, new.fingerprint, 2, samplers.create("random", new.space, 0))
    with pytest.raises(ValueError, match="does not learn"):
        samplers.create("random", new.space, 0).learn_from([])


def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path, old):
    def refused(new):
        with pytest.raises(BadInput, match=r"search\.warm_start") as error:
            warm_start.check(new.config, new.fingerprint, new.space.layers, None)
        assert not (new.folder / warm_start.RECORD).exists()
        return str(error.value)

    assert "2 DALayers" in refused(study(tmp_path / "deeper", [old], layers=3))
    empty = study(tmp_path / "empty")
    assert "no finished trial" in refused(study(tmp_path / "a", [empty]))
    own = study(tmp_path / "own", search={"warm_start": [str(tmp_path / "own")]})
    assert "own `output`" in refused(own)
    nothing = study(tmp_path / "b", search={"warm_start": [str(tmp_path / "nothing")]})
    assert "no study folder" in refused(nothing)
    few = study(tmp_path / "few", sampler="random", trials=2)
    run(few)
    assert "too few architectures" in refused(study(tmp_path / "c", [few], optimization=FASTER))


def test_a_damaged_record_says_what_to_do(tmp_path, old):
    new = study(tmp_path / "new", [old])
    warm_start.old_studies(new)
    (new.folder / warm_start.RECORD).write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="remove it"):
        warm_start.old_studies(new)


def test_the_record_says_where_it_came_from(tmp_path, old):
    new = study(tmp_path / "new", [old])
    run(new)
    (taken,) = json.loads((new.folder / warm_start.RECORD).read_text(encoding="utf-8"))["studies"]
    assert (taken["study"], taken["folder"]) == (old.id, str(old.folder))
    assert taken["identity"]["fingerprint"] == old.fingerprint
    assert Point(tuple(taken["trials"][0]["bits"])).bits in {trial.spec.bits for trial in old.trials()}


def test_loss_weights_are_near_in_orders_of_magnitude_and_the_nearest_alone_count():
    space = SearchSpace(1, weights={"align": (0.01, 1.0)})
    fixed = {"contrastive": 0.1, "collaborative": 0.1}

    def old(align, value, contrastive=0.1):
        weights = {"align": align, "contrastive": contrastive, "collaborative": 0.1}
        return warm_start.OldTrial(bits=(0, 0, 0), weights=weights, value=value)

    assert warm_start._nearest(old(0.05, 0), space).weights == {"align": 0.01}  # 0.7 against 1.3 orders
    assert warm_start._nearest(old(0.3, 0), space).weights == {"align": 1.0}
    grid = [old(0.02, 1.0), old(0.01, 2.0), old(0.01, 3.0, contrastive=10.0), old(1.0, 4.0), old(0.01, 5.0)]
    kept = warm_start._projected(grid, space, fixed)
    assert [(o.point.weights["align"], o.value) for o in kept] == [(0.01, 2.0), (1.0, 4.0), (0.01, 5.0)]


def test_an_old_grid_of_loss_weights_gives_one_result_a_design(tmp_path):
    """At fixed λ the trials of other λ are no repeats of the nearest one."""
    before = study(tmp_path / "old", sampler="random", levels=LEVELS, search={"strategy": "joint"}, trials=24, layers=1)
    run(before)
    new = study(tmp_path / "new", [before], optimization=FASTER, layers=1)
    (old_study,) = warm_start.old_studies(new)
    kept = warm_start._projected(old_study.trials, new.space, {"align": 0.1, "contrastive": 1e-3, "collaborative": 0.1})
    assert len({trial.spec.point for trial in before.trials()}) == 24  # 8 designs at 3 levels
    assert len(kept) == len({o.point.bits for o in kept}) == 8
    values = {trial.spec.point: trial.result.metrics["mrr"] for trial in before.trials()}
    assert all(o.value == values[Point(o.point.bits, {"align": 0.1})] for o in kept)


def test_an_old_study_without_the_new_objective_is_prior_knowledge_by_its_mrr(tmp_path):
    def by_mrr_alone(spec):
        cost, result = outcome(spec)
        return cost, result.model_copy(update={"metrics": {"mrr": result.metrics["mrr"]}})

    before = study(tmp_path / "old", sampler="random")
    run(before, by_mrr_alone)
    new = study(tmp_path / "new", [before], search={"objective": "log_likelihood"})
    (taken,) = warm_start.old_studies(new)
    assert taken.judged_by == "mrr"
    assert not told(new).history.observations
    (use,) = warm_start.check(new.config, new.fingerprint, 2, None)
    assert (use.results, use.related, use.differs) == (0, TRIALS, ["search.objective"])


def test_other_fidelities_of_an_old_study_are_prior_knowledge(tmp_path, old):
    longer = study(old.folder, sampler="random", search={"epochs": 6})
    run(longer)
    assert [entry.fidelity.epochs for entry in warm_start.old_studies(study(tmp_path / "new", [longer]))] == [6, 8]
    new = study(tmp_path / "other", [longer])
    assert {o.point.bits for o in told(new).history.observations} == {
        trial.spec.bits for trial in old.trials() if trial.spec.fidelity.epochs == 8
    }
    (use,) = warm_start.check(new.config, new.fingerprint, 2, None)
    assert (use.results, use.related, use.differs) == (TRIALS, TRIALS, ["fidelity.epochs"])


def card(study, folder, bits=(1, 0, 1, 0, 1, 0), **changes):
    """An export's card of a study's winner."""
    document = {
        "study": "old", "study_id": study.id, "architecture": Architecture(bits).text, "bits": bits,
        "model": study.config.model, "losses": study.config.losses, "seed": 0, "epochs": 4, "best_epoch": 4,
        "users": 9, "items": 9, "max_items": 5, "max_item_tokens": 5, "fingerprint": study.fingerprint,
        "metrics": {"validation": {"mrr": 0.3}}, "versions": {}, "commit": None, "sha256": "", "items_sha256": "",
        "task": {"identity": study.environment["identity"], "fidelity": warm_start.trial_fidelity(study.config)},
    } | changes  # fmt: skip
    folder.mkdir()
    (folder / "architecture.json").write_text(Card.model_validate(document).sealed().model_dump_json())
    return folder


def test_a_card_of_the_same_task_is_a_result(tmp_path, old):
    exported = card(old, tmp_path / "export")
    new = study(tmp_path / "new", search={"warm_start": [str(exported)]})
    (observation,) = told(new).history.observations
    assert (observation.point.bits, observation.value) == ((1, 0, 1, 0, 1, 0), 0.3)
    (use,) = warm_start.check(new.config, new.fingerprint, 2, None)
    assert (use.results, use.related) == (1, 0)


def test_a_card_of_another_task_is_tried_first_and_believed_near_its_architecture(tmp_path, old):
    exported = card(old, tmp_path / "export") / "architecture.json"
    new = study(tmp_path / "new", optimization=FASTER, search={"warm_start": [str(exported)]})
    sampler = told(new)
    assert not sampler.history.observations
    assert sampler.ask().bits == (1, 0, 1, 0, 1, 0)
    assert run(new)[0].bits == (1, 0, 1, 0, 1, 0)
    deeper = study(tmp_path / "deeper", layers=3, search={"warm_start": [str(exported)]})
    with pytest.raises(BadInput, match="2 DALayers"):
        warm_start.check(deeper.config, deeper.fingerprint, 3, None)
