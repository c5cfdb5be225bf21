"""What a study has spent, and a limit that ends search and re-tests in time for what has to follow."""

import json
import shutil
import zlib

import pytest
from study_folders import LEVELS, ask, fail, final_run, finish, new_study, stop_after, whole_study

from darec_search import promotion
from darec_search.budget import Allowance, final_hours, keep_final_attempts, ledger, promotion_share, trial_hours
from darec_search.console import status_document, status_table
from darec_search.controller import Stopped, search
from darec_search.report import write_report
from darec_search.report.facts import gather, verdict
from darec_search.runners.simulated import SimulatedRunner
from darec_search.study import Study
from darec_search.tracking.records import records
from trainer.training.attempts import ATTEMPTS
from trainer.training.result import RunResult

HOUR = 3600.0


def limited(folder, hours, trials=30, share=None, levels=LEVELS, **fields):
    """A study of trials of about an hour of a CPU each: 2 epochs on half of the users; all users take 8 epochs."""
    search_fields = {"sampler": "random", "trials": trials, "epochs": 2, "weights": {"align": list(levels)}}
    budget = {"hours": hours, "promotion_share": share, "price_per_hour": 2.0, "currency": "EUR"}
    return new_study(
        folder,
        layers=2,
        search={**search_fields, **fields},
        promotion={"candidates": 1, "repeats": 3, "epochs": 4},
        budget=budget,
    )


def luck(spec):
    """A number below 1 that a trial of this design, seed and number always has, in whatever study."""
    return zlib.crc32(repr((spec.bits, spec.seed, spec.number)).encode()) / 2**32


def outcome(spec):
    """An hour for an epoch on all users, give or take a quarter."""
    value = 0.1 + sum(spec.bits) / 100 + (spec.seed % 7) / 1000
    seconds = HOUR * spec.fidelity.cost * (0.75 + luck(spec) / 2)
    return seconds, RunResult(status="finished", metrics={"mrr": value, "log_likelihood": value})


def steady(spec):
    """An hour to the second: what a stop restarts ends in the order in which it would have ended."""
    return HOUR * spec.fidelity.cost, outcome(spec)[1]


def run(study, slots=3, on_event=lambda event: None, outcome=outcome):
    """Search and re-test; how many trials the budget left out of the search, and the decision."""
    with SimulatedRunner(study, outcome, slots) as runner:
        left_out = search(study, runner, on_event)
        return left_out, promotion.retest(study, runner, on_event, left_out=left_out)


def asked(study):
    return [(trial.spec.id, trial.spec.stage, trial.spec.number) for trial in study.trials()]


def spent_on(study, *stages):
    return sum(trial_hours(study.config, trial) for trial in study.trials() if trial.spec.stage in stages)


def test_without_a_limit_nothing_is_left_out(tmp_path):
    study = limited(tmp_path / "s", None)
    left_out, decision = run(study)
    assert (left_out, decision.cut) == (0, ())
    assert len([stage for _, stage, _ in asked(study) if stage == "architecture"]) == 30


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("share", [None, 0.6])
def test_search_and_retests_leave_the_trainings_on_all_users_their_part(tmp_path, slots, share):
    study = limited(tmp_path / "s", 40.0, share=share)
    left_out, decision = run(study, slots)
    search_hours = spent_on(study, "weights", "architecture")
    kept = 40.0 * (share or promotion_share(study.config))
    assert left_out > 0
    assert 40.0 - kept - 3 < search_hours <= 40.0 - kept + slots / 4  # those under way may take a quarter longer
    on_all_users = 3 * 4  # three trainings of four hours
    assert ledger(study).hours + on_all_users <= 40.0 + 1
    assert decision.cut[0] == f"the budget of 40 CPU-hours had no room for {left_out} of the search's trials"


def test_a_grid_of_weights_is_cut_too_and_its_best_is_promoted(tmp_path):
    study = limited(tmp_path / "s", 24.0, levels=[level / 10 for level in range(1, 21)])
    left_out, decision = run(study, slots=1)
    stages = [stage for _, stage, _ in asked(study)]
    assert 0 < stages.count("weights") < 20
    assert "architecture" not in stages
    assert left_out == 20 - stages.count("weights") + 30
    assert decision.winner


@pytest.mark.parametrize("slots", [1, 3])
def test_stopped_after_any_event_it_decides_the_same(tmp_path, slots):
    whole = limited(tmp_path / "whole", 30.0)
    outcome_of_whole = run(whole, slots, outcome=steady)
    assert outcome_of_whole[0] > 0
    events = len(asked(whole))
    for after in range(0, events, 2):
        study = limited(tmp_path / f"{after}", 30.0)
        with pytest.raises(Stopped):
            run(study, slots, stop_after(after), steady)
        again = run(Study.load(study.folder), slots, outcome=steady)
        assert again == outcome_of_whole
        assert asked(study) == asked(whole)


def test_more_hours_go_on_where_it_ended(tmp_path):
    first = limited(tmp_path / "s", 25.0)
    left_out, _ = run(first)
    before = [entry for entry in asked(first) if entry[1] == "architecture"]
    more = limited(tmp_path / "s", 60.0)
    assert more.id == first.id
    still_left, _ = run(more)
    after = [entry for entry in asked(more) if entry[1] == "architecture"]
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert still_left < left_out


def promising(folder, hours):
    """A search that is over; its five trials took an hour each."""
    study = limited(folder, hours, levels=[0.1])
    for number in range(5):
        trial = ask(study, [number % 2, 0, 1, 0, 0, number // 2 % 2], 0.1, "architecture", seed=number)
        spec = trial.spec.model_copy(update={"fidelity": trial.spec.fidelity.model_copy(update={"epochs": 2})})
        (trial.folder / "spec.json").write_text(spec.model_dump_json())
        finish(study, study.trial(trial.spec.id), 0.1 + 0.03 * number, 0.0, seconds=HOUR)
    return study


def by_luck(spec):
    """An hour, and a value that is nothing but luck, so that no arm is soon known to be the best."""
    value = 0.1 + luck(spec) / 15
    return HOUR, RunResult(status="finished", metrics={"mrr": value, "log_likelihood": value})


def retests(study, on_event=lambda event: None):
    with SimulatedRunner(study, by_luck, 2) as runner:
        return promotion.retest(study, runner, on_event)


def test_retests_end_in_time_and_are_decided_by_what_is_there(tmp_path):
    everything = retests(promising(tmp_path / "all", None))
    assert everything.spent > 8
    study = promising(tmp_path / "s", 5.0 + 16.0 + 7.0)  # seven re-tests of an hour fit
    decision = retests(study)
    assert decision.spent == 7
    assert "re-tests" in decision.cut[0]
    assert decision.winner in {candidate.arm for candidate in decision.candidates}
    assert min(len(candidate.values) for candidate in decision.candidates) == 1
    assert retests(Study.load(study.folder)) == decision
    assert decision.cut[0] in " ".join(sentence.text for sentence in verdict(gather(study))).replace("The", "the")


def test_each_arm_is_tested_once_whatever_the_budget_says(tmp_path):
    decision = retests(promising(tmp_path / "s", 1.0))
    assert {len(candidate.trials) for candidate in decision.candidates} == {1}


def test_what_the_final_trainings_cost_does_not_change_the_choice_before_them(tmp_path):
    study = promising(tmp_path / "s", 24.0)
    decision = retests(study)
    final_run(study, (0,) * 6)
    for arm in ("serial", "parallel"):
        finish(study, ask(study, [arm == "parallel"] * 6, 0.1, "full", arm), 0.1, 1e9, seconds=4 * HOUR)
    assert ledger(study).parts["all users"] > 8
    assert retests(Study.load(study.folder)) == decision


def test_a_stopped_retest_is_cut_at_the_same_place(tmp_path):
    decision = retests(promising(tmp_path / "whole", 24.0))
    for after in range(decision.spent):
        study = promising(tmp_path / f"{after}", 24.0)
        with pytest.raises(Stopped):
            retests(study, stop_after(after))
        assert retests(study) == decision


def lines(*attempts):
    """Of `attempts.jsonl`: (id, hours, gpus, over)."""
    rows, at = [], 1e9
    for name, hours, gpus, over in attempts:
        rows.append({"attempt": name, "started_at": at, "worker": "w", "cpus": 1, "gpus": gpus})
        at += hours * HOUR
        rows += [{"attempt": name, "ended_at": at, "cut": None}] if over else []
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_hours_are_of_gpus_where_lanes_have_some(tmp_path):
    resources = {"gpus_per_lane": 0.5, "cpus_per_lane": 4}
    study = new_study(tmp_path / "s", resources=resources, budget={"hours": 10, "price_per_hour": 3, "currency": "EUR"})
    old = finish(study, ask(study, (0,) * 12, 0.1, "weights"), 0.1, 0.0, seconds=2 * HOUR)  # has no record of attempts
    other = fail(study, ask(study, (1,) * 12, 0.1, "architecture"), "failed", "broken")
    (other.folder / ATTEMPTS).write_text(lines(("a", 2, 0.5, True), ("b", 4, 1.0, True)))
    pending = ask(study, (0, 1) * 6, 0.1, "retest", "best-1")
    (pending.folder / ATTEMPTS).write_text(lines(("c", 2, 0.5, True), ("d", 1, 0.5, False)))
    assert trial_hours(study.config, old) == 1.0
    found = ledger(study)
    assert found.parts == {"search": 1.0 + 1.0 + 4.0, "re-tests": 1.0, "all users": 0.0, "audit": 0.0}
    assert found.text == "7 of 10 GPU-hours (21.00 of 30.00 EUR)"
    assert found.document()["cost"] == 21.0


def test_a_final_run_that_makes_room_for_another_is_not_forgotten(tmp_path):
    study = whole_study(tmp_path / "s")
    (study.folder / "final" / ATTEMPTS).write_text(lines(("a", 3, 0, True), ("b", 1, 0, False)))
    assert final_hours(study) >= 3.0
    keep_final_attempts(study.folder)
    keep_final_attempts(study.folder)  # a crash between keeping and removing
    shutil.rmtree(study.folder / "final")
    assert final_hours(study) == 3.0
    final_run(study, (0, 1) * 6)
    (study.folder / "final" / ATTEMPTS).write_text(lines(("c", 2, 0, True)))
    assert final_hours(study) == 5.0


def test_what_a_lost_attempt_of_a_trial_under_way_took_counts_at_once(tmp_path):
    study = limited(tmp_path / "s", 24.0, share=0.0)
    searched_trial = promising(tmp_path / "other", 20.0).trials()
    under_way = ask(study, (1,) * 6, 0.1, "architecture").spec
    allowance = Allowance(study, [])
    assert allowance.search_goes_on(searched_trial[:1], [under_way])
    (study.trial_folder(under_way.id) / ATTEMPTS).write_text(lines(("a", 15, 0, True), ("b", 1, 0, False)))
    assert not allowance.search_goes_on(searched_trial[:1], [under_way])


def test_workers_that_share_a_trial_share_its_hours(tmp_path):
    def retests(name, seconds, **resources):
        study = new_study(
            tmp_path / name, layers=2, search={"sampler": "random", "epochs": 2},
            promotion={"candidates": 1, "epochs": 4}, budget={"hours": 20}, resources=resources,
        )  # fmt: skip
        trial = finish(study, ask(study, (0,) * 6, 0.1, "architecture"), 0.1, 0.0, seconds=seconds)
        assert trial_hours(study.config, trial) == pytest.approx(1.0)
        return Allowance(study, [trial]).retests(trial.spec.fidelity)

    # 20 hours: 1 is spent, and four trainings of twice as many passes are to follow, one of them on a single worker
    assert retests("one", HOUR) == 11
    assert retests("two", HOUR / 2, cpus_per_lane=2, workers_per_lane=2) == 11


def test_the_plan_says_which_part_is_the_promotions(tmp_path):
    study = limited(tmp_path / "s", 10.0, levels=[0.1], trials=12)
    # 12 trials and 12 re-tests of one pass each; four trainings of four passes
    assert promotion_share(study.config) == pytest.approx((12 + 16) / (12 + 12 + 16))
    assert promotion_share(limited(tmp_path / "t", 10.0, share=0.4).config) == 0.4


def test_status_and_report_say_what_is_spent(tmp_path):
    whole_study(tmp_path / "s")
    file = tmp_path / "s" / "study.yaml"
    file.write_text(file.read_text().replace("price_per_hour: null", "price_per_hour: 100.0"))
    study = Study.load(tmp_path / "s")
    spent = ledger(study)
    assert spent.hours == pytest.approx((sum(t.result.cost.wall_s for t in study.trials()) + 40) / HOUR)
    assert status_table(study).caption == f"spent: {spent.text}"
    assert status_document(study)["spent"]["by_part"] == spent.parts
    write_report(study)
    assert f"<dt>spent</dt><dd>{spent.text}</dd>" in (study.folder / "report.html").read_text()
    assert records(study, live=False)[0].summary["cost/price"] == pytest.approx(100 * spent.hours)
