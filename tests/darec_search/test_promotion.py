"""From the best points to one model, over trials that really train; and what is done again when something changed."""

import json
import shutil

import pytest
from study_folders import ask, fail, finish, new_study
from tiny_studies import USERS, study_config

from darec_search import arms, final_models, pipeline, planning, promotion
from darec_search.runners.base import DoneEvent
from darec_search.runners.simulated import SimulatedRunner
from darec_search.space import Point
from darec_search.study import Study
from darec_search.variants import with_prior
from trainer.architecture import FIXED_ARMS
from trainer.config import RunConfig
from trainer.errors import BadInput
from trainer.training.ranks import load_ranks
from trainer.training.result import Forecast, RunResult, write_atomic
from trainer.training.run import run

SERIAL, PARALLEL, MIXED = (0,) * 12, (1,) * 12, (0, 1) * 6


class Watch:
    """Remembers which trials ran, and can stop a study as it reaches a part."""

    def __init__(self, stop_at: str = "never") -> None:
        self.ran: list[str] = []
        self.begun: dict[str, tuple[int, int]] = {}
        self._stop_at = stop_at

    def stage(self, text, runs=0, done=()):
        self.begun[text] = (runs, len(done))
        if text.startswith(self._stop_at):
            raise KeyboardInterrupt

    def event(self, event):
        if isinstance(event, DoneEvent):
            self.ran.append(event.trial_id)


def copy_of(finished, tmp_path, **sections):
    """A config that goes on with a copy of the finished study."""
    home = finished.study.folder.parent
    shutil.copytree(finished.study.folder, tmp_path / "study", dirs_exist_ok=True)
    return study_config(home, **{"output": str(tmp_path / "study"), "tracking": {"enabled": False}, **sections})


def final_comparisons(study):
    """Openings of the test split without evaluations, which other tests make of the shared study's export."""
    return [opening for opening in final_models.split_openings(study) if opening["reason"] == "final comparison"]


def outcomes(values):
    """Results from a table of values by bits (or "darec_base") and seed; what is missing fails."""

    def outcome(spec):
        of_arm = values.get("darec_base" if spec.stage == "variant" else spec.bits, ())
        value = dict(enumerate(of_arm)).get(spec.seed - 1000)
        status = "failed" if value is None else "finished"
        return 1.0, RunResult(status=status, metrics={"mrr": value or 0.0}, reason="broken" if value is None else None)

    return outcome


def retested(study, values, on_event=lambda event: None, extra=None):
    """Run the re-test over such a table."""
    with SimulatedRunner(study, outcomes(values), 2) as runner:
        return promotion.retest(study, runner, on_event, extra)


@pytest.fixture
def searched(tmp_path):
    """Serial scored 0.2, the mixed architecture 0.4 by luck; one trial failed."""
    study = new_study(tmp_path / "study", promotion={"candidates": 2, "repeats": 2})
    finish(study, ask(study, SERIAL, 0.1, "weights"), 0.2, 0.0)
    finish(study, ask(study, MIXED, 1.0, "architecture"), 0.4, 0.0)
    fail(study, ask(study, PARALLEL, 1.0, "architecture"), "out_of_memory", "CUDA out of memory.")
    return study


def test_the_fixed_arms_are_candidates_at_the_best_weights(searched):
    found = arms.candidates(searched)
    assert found == {
        "best-1": Point(MIXED, {"align": 1.0}),
        "best-2": Point(SERIAL, {"align": 0.1}),
        "serial": Point(SERIAL, {"align": 1.0}),
        "parallel": Point(PARALLEL, {"align": 1.0}),
    }


def test_designs_are_candidates_by_the_mean_of_their_trials(tmp_path):
    search = {"sampler": "random", "epochs": 4, "weights": {"align": [0.1, 1.0]}}
    study = new_study(tmp_path / "study", search=search, promotion={"candidates": 2})
    lucky, steady, other = (1, 0, 0) * 4, (0, 1, 0) * 4, (0, 0, 1) * 4
    for design, values in ((lucky, (0.9, 0.1, 0.1)), (steady, (0.5, 0.6)), (other, (0.4,))):
        for seed, value in enumerate(values):
            finish(study, ask(study, design, 1.0, "architecture", seed=seed), value, 0.0)
    found = arms.candidates(study)
    assert (found["best-1"].bits, found["best-2"].bits) == (steady, other)
    assert arms.search_values(study, "mrr")[Point(lucky, {"align": 1.0})] == pytest.approx(1.1 / 3)


@pytest.mark.parametrize(("status", "leads"), [("out_of_memory", False), ("failed", True)])
def test_a_design_that_fails_by_its_own_fault_as_often_as_not_does_not_lead(tmp_path, status, leads):
    search = {"sampler": "random", "epochs": 4, "weights": {"align": [0.1, 1.0]}}
    study = new_study(tmp_path / "study", search=search, promotion={"candidates": 2})
    finish(study, ask(study, MIXED, 1.0, "architecture"), 0.6, 0.0)
    finish(study, ask(study, (0, 1, 0) * 4, 1.0, "architecture"), 0.5, 0.0)
    fail(study, ask(study, MIXED, 1.0, "architecture", seed=1), status, "as planned")
    assert (arms.candidates(study)["best-1"].bits == MIXED) is leads


def test_what_the_curve_of_a_stopped_trial_foretold_counts_in_the_recommendation(tmp_path):
    """The lucky design's second trial was stopped as hopeless, so it is not the best."""
    search = {"sampler": "random", "epochs": 4, "objective": "mrr", "weights": {"align": [0.1, 1.0]}}
    study = new_study(tmp_path / "study", search=search, promotion={"candidates": 2})
    finish(study, ask(study, MIXED, 1.0, "architecture"), 0.6, 0.0)
    finish(study, ask(study, (0, 1, 0) * 4, 1.0, "architecture"), 0.5, 0.0)
    again = ask(study, MIXED, 1.0, "architecture", seed=1)
    forecast = Forecast(metric="mrr", value=0.2, stderr=0.05)
    result = RunResult(status="pruned", reason="as planned", forecast=forecast)
    write_atomic(again.folder / "result.json", result.model_dump_json())
    assert arms.candidates(study)["best-1"].bits == (0, 1, 0) * 4


def test_levels_that_the_config_no_longer_has_do_not_lead(searched):
    finish(searched, ask(searched, MIXED, 0.7, "joint"), 0.9, 0.0)
    levels = {name: point.weights["align"] for name, point in arms.candidates(searched).items()}
    assert levels == {"best-1": 1.0, "best-2": 0.7, "serial": 1.0, "parallel": 1.0}


def test_a_fixed_arm_that_the_search_found_is_tested_once(searched):
    for seed in (1, 2):  # more often than it failed
        finish(searched, ask(searched, PARALLEL, 1.0, "architecture", seed=seed), 0.9, 0.0)
    assert list(arms.candidates(searched)) == ["best-2", "serial", "parallel"]


def test_the_luck_of_the_search_does_not_count(searched):
    decision = retested(searched, {MIXED: (0.15,) * 9, SERIAL: (0.3, 0.31) * 5, PARALLEL: (0.1,) * 9})
    assert decision.winner == "serial"
    by_arm = {candidate.arm: candidate for candidate in decision.candidates}
    assert by_arm["best-1"].search_value == pytest.approx(0.4)
    assert by_arm["serial"].search_value is None
    assert by_arm["best-1"].mean == pytest.approx(0.15)
    assert decision.overstatement.luckiest == pytest.approx(0.4 - by_arm["best-1"].estimate)
    assert decision.overstatement.luckiest > 0.2
    low, high = by_arm["serial"].interval
    assert low < decision.value.mean == by_arm["serial"].estimate < high
    stored = json.loads((searched.folder / "promotion.json").read_text())
    assert stored == decision.model_dump(mode="json")


def test_bad_arms_get_fewer_seeds_within_the_budget(searched):
    decision = retested(searched, {MIXED: (0.3, 0.29, 0.31), SERIAL: (0.28, 0.3, 0.3), PARALLEL: (0.1,) * 3})
    seeds = {candidate.arm: len(candidate.trials) for candidate in decision.candidates}
    assert seeds["parallel"] == seeds["darec_base"] == 1
    assert seeds["best-1"] > 1
    assert decision.spent == sum(seeds.values()) <= 2 * len(seeds)


def test_a_fixed_arm_wins_ties(tmp_path):
    study = new_study(tmp_path / "study", search={"sampler": "random", "epochs": 4}, promotion={"candidates": 1})
    finish(study, ask(study, MIXED, 1.0, "architecture"), 0.4, 0.0)
    values = {MIXED: (0.315, 0.31, 0.3, 0.32), SERIAL: (0.3, 0.31, 0.295, 0.305), PARALLEL: (0.1,) * 4}
    decision = retested(study, values)
    by_arm = {candidate.arm: candidate for candidate in decision.candidates}
    assert by_arm["best-1"].estimate > by_arm["serial"].estimate
    assert decision.winner == "serial"
    assert "it is at least as good as best-1" in decision.reason
    assert "a fixed arm wins ties" in decision.reason


def test_a_clear_winner_ends_the_re_tests_early(searched):
    decision = retested(searched, {MIXED: (0.9,) * 9, SERIAL: (0.3,) * 9, PARALLEL: (0.1,) * 9, "darec_base": (0.1,)})
    assert (decision.winner, decision.clear) == ("best-1", True)
    assert decision.spent < 10
    assert decision.confidence > 0.9
    assert decision.as_good["serial"] < 0.05


def test_an_arm_whose_retests_failed_cannot_win(searched):
    decision = retested(searched, {SERIAL: (0.1, 0.2, 0.1)})
    assert decision.winner == "serial"
    failed = {candidate.arm for candidate in decision.candidates if candidate.estimate is None}
    assert failed == {"best-1", "parallel", "darec_base"}


def test_without_a_finished_retest_nothing_is_promoted(searched):
    with pytest.raises(promotion.PromotionFailed, match="no re-test finished"):
        retested(searched, {})


def test_architectures_of_the_user_and_the_caller_compete(tmp_path):
    wanted = {"candidates": 1, "arms": ["SPS-SPS-SPS-SPS", "serial"]}
    study = new_study(tmp_path / "study", promotion=wanted)
    finish(study, ask(study, MIXED, 1.0, "architecture"), 0.4, 0.0)
    champion = Point((1, 0, 0) * 4, {"align": 0.5})
    values = {MIXED: (0.2,) * 9, SERIAL: (0.1,) * 9, champion.bits: (0.5, 0.52) * 5}
    decision = retested(study, values, extra={"champion": champion})
    assert [c.arm for c in decision.candidates] == ["best-1", "serial", "parallel", "given-1", "champion", "darec_base"]
    assert (decision.winner, decision.best.weights) == ("champion", {"align": 0.5})
    finish(study, ask(study, MIXED, 0.1, "architecture"), 0.4, 0.0)
    with pytest.raises(BadInput, match="the arm serial cannot be re-tested"):
        retested(study, values, extra={"serial": champion})


def test_a_stopped_promotion_ends_as_one_that_was_not(searched, tmp_path):
    """Neither other arms that the caller brings later, nor any boundary, changes what it comes to."""
    values = {
        MIXED: (0.3, 0.31, 0.28, 0.3), SERIAL: (0.29, 0.3, 0.29, 0.27), PARALLEL: (0.1, 0.2, 0.1),
        "darec_base": (0.25, 0.26, 0.2),
    }  # fmt: skip
    shutil.copytree(searched.folder, tmp_path / "other")
    at_once = retested(searched, values)
    other, starts = Study.load(tmp_path / "other"), 0

    def stop(event):
        if isinstance(event, DoneEvent):
            raise KeyboardInterrupt

    while starts < 50:
        starts += 1
        try:
            extra = {"champion": Point((1, 1, 0) * 4, {"align": 1.0})} if starts > 1 else None
            resumed = retested(other, values, stop, extra)
            break
        except KeyboardInterrupt:
            continue
    assert starts > 5
    assert resumed == at_once


def test_darec_base_is_the_papers_variation_1(searched):
    values = {MIXED: (0.1,) * 4, SERIAL: (0.1,) * 4, PARALLEL: (0.1,) * 4, "darec_base": (0.5, 0.51) * 3}
    decision = retested(searched, values)
    assert decision.winner == "darec_base"
    spec = searched.trial(decision.best.trials[0]).spec
    run_config = searched.run_config(spec)
    assert run_config.model.masks == ("causal",)
    assert (run_config.model.collaborative.model, run_config.losses.collaborative) == ("none", 0)
    assert final_models._winner_config(searched, decision).model == with_prior(run_config).model
    specs = final_models.full_specs(searched, decision)
    assert [spec.arm for spec in specs] == ["darec_base", "serial", "parallel"]
    assert searched.run_config(specs[0]).model == run_config.model
    assert len({spec.id for spec in specs}) == 3  # DARec_base has the bits of all serial


def test_the_final_model_has_the_prior_and_architectures_are_compared_without(searched):
    decision = retested(searched, {MIXED: (0.5,) * 5, SERIAL: (0.3,) * 5, PARALLEL: (0.1,) * 5})
    final = final_models._winner_config(searched, decision)
    assert final.model.prior is not None
    assert (final.model.head_dropout, final.optimization.rates) == (0.2, {"head": 0.1, "prior": 3.0})
    specs = final_models.full_specs(searched, decision)
    assert [spec.arm for spec in specs] == ["best-1", "serial", "parallel"]
    assert {searched.run_config(spec).model.prior for spec in specs} == {None}
    assert specs[0].point == Point(decision.best.bits, decision.best.weights)


@pytest.mark.parametrize(
    "sections",
    [{"promotion": {"prior": False}}, {"model": {"prior": {"decay": 0.5}}}, {"losses": {"sampled_items": 8}}],
    ids=["refused", "searched with one", "of sampled items"],
)
def test_no_prior_is_added_where_none_is_wanted_or_fits(tmp_path, sections):
    study = new_study(tmp_path / "study", **sections)
    for bits in (MIXED, SERIAL):
        finish(study, ask(study, bits, 0.1, "architecture"), 0.1, 0.0)
    decision = retested(study, {MIXED: (0.5,) * 5, SERIAL: (0.3,) * 5, PARALLEL: (0.1,) * 5})
    assert final_models._winner_config(study, decision).model.prior == study.config.model.prior
    assert [spec.arm for spec in final_models.full_specs(study, decision)] == ["serial", "parallel"]


def test_without_a_finished_trial_nothing_is_promoted(tmp_path):
    study = new_study(tmp_path / "study")
    fail(study, ask(study, SERIAL, 0.1, "weights"), "out_of_memory", "CUDA out of memory.")
    with pytest.raises(promotion.PromotionFailed, match="CUDA out of memory"):
        arms.candidates(study)


def test_more_search_makes_the_decision_anew_and_repeats_no_retest(searched):
    values = {MIXED: (0.5,) * 5, SERIAL: (0.3,) * 5, PARALLEL: (0.1,) * 5, "darec_base": (0.1,) * 5}
    assert retested(searched, values).winner == "best-1"
    done = {trial.spec.id: trial.result for trial in searched.trials() if trial.result}
    found = (1, 1, 0) * 4
    finish(searched, ask(searched, found, 1.0, "architecture"), 0.8, 0.0)
    decision = retested(searched, {found: (0.9,) * 5})  # whatever ran again would fail now
    assert (decision.winner, decision.best.bits) == ("best-1", found)
    again = {trial.spec.id: trial.result for trial in Study.load(searched.folder).trials() if trial.spec.id in done}
    assert again == done


def test_at_full_fidelity_the_fixed_arms_still_get_models_of_their_own(tmp_path, finished):
    """A search on all users with all epochs asks the same question as the final runs, but keeps no model."""
    sections = {"data": {**study_config(finished.study.folder.parent).data.model_dump(), "search_fraction": 1.0}}
    search = {"epochs": None, "trials": 1, "weights": {}}
    config = study_config(
        finished.study.folder.parent, output=str(tmp_path / "study"), tracking={"enabled": False}, search=search,
        promotion={"repeats": 1}, **sections,
    )  # fmt: skip
    names = [row["name"] for row in pipeline.compare(config).comparison]
    winner = json.loads((tmp_path / "study" / "promotion.json").read_text())["winner"]
    assert names == ["winner", winner, *(arm for arm in FIXED_ARMS if arm != winner), "popularity", "neighbours"]


def test_a_finished_study_is_left_as_it_is(finished, tmp_path):
    config, watch = copy_of(finished, tmp_path), Watch()
    before = {file: file.read_bytes() for file in (tmp_path / "study").rglob("*.json")}
    again = pipeline.run(config, watch)
    assert watch.ran == []
    assert (again.promotion, again.comparison) == (finished.promotion, finished.comparison)
    changed = {file.name for file, content in before.items() if file.read_bytes() != content}
    assert changed <= {"environment.json"}  # says what it was resumed with
    for text in ("search", "re-test with fresh seeds", "arms on all users"):
        runs, done = watch.begun[text]
        assert runs == done > 0


def test_the_opening_of_the_test_split_is_recorded_with_its_models(finished):
    (opening,) = final_comparisons(finished.study)
    assert opening["fingerprint"] == finished.study.fingerprint
    rows = [row["name"] for row in finished.comparison if row["name"] not in ("popularity", "neighbours")]
    assert list(opening["models"]) == rows


def test_a_lost_comparison_is_made_again_from_the_same_models(finished, tmp_path):
    config, watch = copy_of(finished, tmp_path), Watch()
    (tmp_path / "study" / "final" / "comparison.json").unlink()
    again = pipeline.compare(config, watch)
    assert watch.ran == []
    assert again.comparison == finished.comparison
    assert len(final_comparisons(again.study)) == 2


@pytest.mark.parametrize("part", ["result.json", "model.safetensors", "run.json"])
def test_a_final_run_that_is_not_whole_is_done_again_alone(finished, tmp_path, part):
    config, watch = copy_of(finished, tmp_path), Watch()
    (tmp_path / "study" / "final" / part).unlink()
    again = pipeline.compare(config, watch)
    assert watch.ran == []
    assert again.comparison == finished.comparison


def interrupted_final_run(study, config):
    """Leave `final/` as a kill after the first epoch does; returns that epoch's row."""
    final = study.folder / "final"
    shutil.rmtree(final)
    write_atomic(final / "run.json", config.model_dump_json())
    rows = []

    def interrupt(row):
        rows.append(row)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, final, on_row=interrupt)
    assert list((final / "checkpoint").glob("epoch-*"))
    return rows[0]


def test_a_checkpoint_of_another_winner_is_not_gone_on_from(finished, tmp_path):
    """Its tensors fit every architecture, so nothing else would notice."""
    config = copy_of(finished, tmp_path)
    study = Study.load(tmp_path / "study")
    mine = RunConfig.model_validate_json((study.folder / "final" / "run.json").read_text())
    other = mine.model_copy(update={"model": mine.model.model_copy(update={"architecture": "SPS-PSP"})})
    interrupted_final_run(study, other)
    assert pipeline.compare(config).comparison == finished.comparison


def test_a_final_run_goes_on_from_its_own_checkpoint(finished, tmp_path):
    config = copy_of(finished, tmp_path)
    study = Study.load(tmp_path / "study")
    mine = RunConfig.model_validate_json((study.folder / "final" / "run.json").read_text())
    row = interrupted_final_run(study, mine)
    again = pipeline.compare(config)
    assert again.study.final_result().curve[0] == row
    assert again.comparison == finished.comparison


def test_other_final_epochs_train_winner_and_fixed_arms_anew(finished, tmp_path):
    config, watch = copy_of(finished, tmp_path, promotion={"epochs": 3}), Watch()
    again = pipeline.run(config, watch)
    fixed = [trial for trial in again.study.trials() if trial.spec.id in watch.ran]
    assert {trial.spec.stage for trial in fixed} == {"full"}
    assert {len(trial.result.curve) for trial in fixed} == {3}
    assert len(again.study.final_result().curve) == 3
    assert len(final_comparisons(again.study)) == 2
    card = json.loads((again.model / "architecture.json").read_text())
    assert card["epochs"] == 3
    assert card["metrics"]["test"]["mrr"] == pytest.approx(again.comparison[0]["mrr"])


def test_when_the_winner_changes_nothing_of_the_old_one_is_left(finished, tmp_path):
    """A fixed arm that lost before wins now: its row is the winner's, and the export is its model."""
    old = finished.promotion.winner
    config = copy_of(finished, tmp_path)
    study = Study.load(tmp_path / "study")
    winner = next(arm for arm in FIXED_ARMS if arm != old)
    for candidate in finished.promotion.candidates:
        for trial_id in candidate.trials if candidate.arm == winner else ():
            file = study.trial_folder(trial_id) / "result.json"
            result = json.loads(file.read_text())
            result["metrics"]["mrr"] = 0.99
            file.write_text(json.dumps(result))
    again = pipeline.run(config)
    assert again.promotion.winner == winner
    others = [arm for arm in FIXED_ARMS if arm != winner]
    assert [row["name"] for row in again.comparison] == ["winner", winner, *others, "popularity", "neighbours"]
    card = json.loads((again.model / "architecture.json").read_text())
    assert tuple(card["bits"]) == again.promotion.best.bits
    before = finished.study.folder / "best" / "model.safetensors"
    assert (again.model / "model.safetensors").read_bytes() != before.read_bytes()


def test_a_fixed_arm_that_cannot_be_trained_is_missed_aloud(finished, tmp_path, caplog):
    config = copy_of(finished, tmp_path)
    study = Study.load(tmp_path / "study")
    *_, spec = final_models.full_specs(study, finished.promotion)
    failed = RunResult(status="out_of_memory", reason="CUDA out of memory.")
    (study.trial_folder(spec.id) / "result.json").write_text(failed.model_dump_json())
    (study.trial_folder(spec.id) / "model.safetensors").unlink()
    again = pipeline.compare(config)
    assert spec.arm not in [row["name"] for row in again.comparison]
    assert f"the arm {spec.arm} has no place in the final table" in caplog.text


def test_one_controller_at_a_time(finished, tmp_path):
    config = copy_of(finished, tmp_path)
    study = Study.load(tmp_path / "study")
    with pipeline.alone(study), pytest.raises(BadInput, match="another process is at work"):
        pipeline.run(config)


def test_the_samplers_recommendation_leads_the_candidates(tmp_path):
    """A lucky draw against its neighbours: the surrogate does not believe it, and it is tested all the same."""
    from study_folders import ask, finish, new_study

    study = new_study(tmp_path / "study", layers=2, search={"epochs": 4, "weights": {"align": [0.1, 1.0]}})
    lucky = (1, 1, 1, 1, 1, 0)
    values = {lucky: 0.46}
    for i in range(6):
        for j in range(i + 1, 6):
            bits = tuple(int(k in (i, j)) for k in range(6))
            values[bits] = 0.45 - 0.1 * (i + j) / 9
            values[tuple(1 - bit for bit in bits)] = 0.10
    for bits, value in values.items():
        finish(study, ask(study, bits, 0.1, "architecture"), value, started=0.0)
    found = arms.candidates(study)
    assert found["best-1"].bits != lucky
    assert sum(found["best-1"].bits) == 2
    assert any(point.bits == lucky for point in found.values())


def test_users_being_a_sample_counts_in_the_interval(finished):
    """The re-tests kept the ranks of single users, whose mean reciprocals are their MRR."""
    decision, study = finished.promotion, finished.study
    assert decision.users == round(0.6 * USERS)
    trial = study.trial(decision.best.trials[0])
    ranks, users = load_ranks(trial.folder, trial.objective)
    assert len(ranks) == users == decision.users
    assert (1 / ranks).mean() == pytest.approx(trial.objective, rel=1e-5)
    assert load_ranks(trial.folder, trial.objective + 0.01) is None


def test_arms_that_do_not_fit_the_model_are_refused_before_anything_is_spent(finished):
    home = finished.study.folder.parent
    config = study_config(home, output=str(home / "other"), promotion={"arms": ["SPS-PPS-SSS"]})
    with pytest.raises(BadInput, match=r"promotion\.arms: architecture 'SPS-PPS-SSS' describes 3 DALayers"):
        planning.check(config, finished.study.dataset())
