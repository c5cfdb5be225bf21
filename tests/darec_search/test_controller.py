"""The search loop over simulated trials: nothing here trains, and no wall time passes."""

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from study_folders import LEVELS, new_study, stop_after

from darec_search import arms, weights
from darec_search.controller import SearchFailed, Stopped, search, stopping_on_signals
from darec_search.runners.base import DoneEvent
from darec_search.runners.simulated import SimulatedRunner
from darec_search.study import Study
from trainer.errors import BadInput
from trainer.training.result import RunResult

TRIALS = 6


def tiny(folder, strategy="staged", levels=LEVELS, trials=TRIALS, **search_fields):
    fields = {"sampler": "random", "trials": trials, "strategy": strategy, "weights": {"align": list(levels)}}
    return new_study(folder, layers=2, search={**fields, **search_fields})


def outcome(spec):
    """Parallel adapters and λ = 0.1 are good; durations differ, so that trials end out of order."""
    value = sum(spec.bits) / 10 - abs(spec.weights.get("align", 0.1) - 0.1)
    return 1.0 + int(spec.id[:2], 16) % 7, RunResult(status="finished", metrics={"mrr": value, "log_likelihood": value})


class Recorder:
    """An outcome that remembers which trials ran."""

    def __init__(self, of=outcome):
        self.of, self.ran = of, Counter()

    def __call__(self, spec):
        self.ran[spec.id] += 1
        return self.of(spec)


def run(study, slots=2, of=outcome, on_event=None):
    with SimulatedRunner(study, of, slots) as runner:
        search(study, runner, on_event)
    return study.trials()


def stages(trials):
    return Counter(trial.spec.stage for trial in trials)


def test_staged_runs_the_grid_then_the_bits_at_the_best_weights(tmp_path):
    trials = run(tiny(tmp_path / "s"))
    assert stages(trials) == {"weights": len(LEVELS), "architecture": TRIALS}
    assert {trial.spec.weights["align"] for trial in trials if trial.spec.stage == "weights"} == set(LEVELS)
    assert all(not any(trial.spec.bits) for trial in trials if trial.spec.stage == "weights")
    assert {trial.spec.weights["align"] for trial in trials if trial.spec.stage == "architecture"} == {0.1}
    assert [trial.spec.number for trial in trials] == list(range(len(trials)))
    last_of_grid = max(trial.result.cost.ended_at for trial in trials if trial.spec.stage == "weights")
    assert all(t.result.cost.started_at >= last_of_grid for t in trials if t.spec.stage == "architecture")


def test_joint_searches_bits_and_weights_together(tmp_path):
    trials = run(tiny(tmp_path / "s", "joint", trials=12))
    assert stages(trials) == {"joint": 12}
    assert len({trial.spec.weights["align"] for trial in trials}) > 1


THREE = {"align": [0.01, 0.1, 1.0], "contrastive": [0.0, 0.1, 0.2], "collaborative": [0.5]}


def three(spec):
    """The best λ is (0.1, 0) at the serial architecture; more parallel adapters want more of λ2. Half luck by seed."""
    seconds, result = outcome(spec)
    wanted = 0.2 * sum(spec.bits) / len(spec.bits)
    value = result.metrics["mrr"] - abs(spec.weights["contrastive"] - wanted) + (0.3 if spec.seed % 2 else -0.3)
    return seconds, RunResult(status="finished", metrics={"mrr": value, "log_likelihood": value})


def weights_of(trials, stage="weights"):
    return [tuple(trial.spec.weights.values()) for trial in trials if trial.spec.stage == stage]


def test_one_weight_at_a_time_tries_its_levels_with_the_others_at_their_best(tmp_path):
    trials = run(tiny(tmp_path / "s", weights=THREE, weight_search="one_at_a_time"), of=three)
    assert weights_of(trials) == [
        (0.01, 0.1, 0.5), (0.1, 0.1, 0.5), (1.0, 0.1, 0.5),  # λ2 at its middle level: `losses` has none of them
        (0.1, 0.0, 0.5), (0.1, 0.2, 0.5),
    ]  # fmt: skip
    assert set(weights_of(trials, "architecture")) == {(0.1, 0.0, 0.5)}


def test_a_level_that_the_losses_name_is_where_one_at_a_time_begins(tmp_path):
    search_fields = {"sampler": "random", "trials": 1, "weights": THREE, "weight_search": "one_at_a_time"}
    study = new_study(tmp_path / "s", layers=2, search=search_fields, losses={"contrastive": 0.2})
    assert {contrastive for _, contrastive, _ in weights_of(run(study, of=three))[:3]} == {0.2}


@pytest.mark.parametrize("way", ["grid", "one_at_a_time"])
def test_repeats_of_a_setting_have_seeds_of_their_own_and_their_mean_decides(tmp_path, way):
    def lucky(spec):
        """The worst setting is the luckiest under its first seed."""
        seconds, result = three(spec)
        luck = 9.0 if spec.weights["align"] == 1.0 and spec.seed == 0 else 0.0
        luck -= 20.0 if spec.weights["align"] == 1.0 and spec.seed == 1 else 0.0
        value = result.metrics["mrr"] + luck
        return seconds, RunResult(status="finished", metrics={"mrr": value, "log_likelihood": value})

    trials = run(tiny(tmp_path / "s", weights=THREE, weight_search=way, weight_repeats=2), of=lucky)
    tried = [(tuple(trial.spec.weights.values()), trial.spec.seed) for trial in trials if trial.spec.stage == "weights"]
    assert sorted(tried) == sorted((setting, seed) for setting, _ in dict(tried).items() for seed in (0, 1))
    assert set(weights_of(trials, "architecture")) == {(0.1, 0.0, 0.5)}
    settled = run(tiny(tmp_path / "once", weights=THREE, weight_search=way), of=lucky)
    assert {align for align, _, _ in weights_of(settled, "architecture")} == {1.0}


@pytest.mark.parametrize("way", ["grid", "one_at_a_time"])
def test_weights_again_at_the_best_architecture_count_in_the_choice_of_candidates(tmp_path, way):
    study = tiny(tmp_path / "s", weights=THREE, weight_search=way, weights_again=True)
    trials = run(study, of=three)
    searched = {t.spec.bits: t.objective for t in trials if t.spec.stage == "architecture"}
    again = [trial for trial in trials if trial.spec.stage == "weights" and any(trial.spec.bits)]
    (best,) = {trial.spec.bits for trial in again}
    assert searched[best] == max(searched.values())
    # the setting of the search for bits is known at this architecture
    assert len(again) == weights.trials_of(study.config) - 1
    assert min(trial.spec.number for trial in again) > TRIALS
    favourite = arms.candidates(study)["best-1"]
    assert favourite.bits == best
    assert favourite.weights["contrastive"] > 0.0


@pytest.mark.parametrize("fields", [{"weights_again": True}, {"weight_search": "one_at_a_time", "weight_repeats": 3}])
@pytest.mark.parametrize("levels", [(), (0.5,)])
def test_with_nothing_to_choose_no_trial_is_spent_on_weights(tmp_path, fields, levels):
    assert stages(run(tiny(tmp_path / "s", levels=levels, **fields))) == {"architecture": TRIALS}


def test_a_failed_second_look_at_the_weights_does_not_fail_the_search(tmp_path):
    def once(spec):
        good = spec.stage != "weights" or not any(spec.bits)
        return outcome(spec) if good else (1.0, RunResult(status="failed", reason="as planned"))

    trials = run(tiny(tmp_path / "s", weights_again=True), of=once)
    assert {trial.status for trial in trials} == {"finished", "failed"}
    assert run(Study.load(tmp_path / "s"), of=once) == trials


@pytest.mark.parametrize("levels", [(), (0.5,)])
def test_without_a_choice_of_weights_there_is_no_grid(tmp_path, levels):
    trials = run(tiny(tmp_path / "s", levels=levels))
    assert stages(trials) == {"architecture": TRIALS}
    assert all(tuple(trial.spec.weights.values()) == levels for trial in trials)


def test_slots_and_points_ahead_are_kept_filled(tmp_path):
    study = tiny(tmp_path / "s", "joint", trials=9, ahead=1)
    most = 0

    def observe(event):
        nonlocal most
        most = max(most, sum(trial.result is None for trial in study.trials()) + 1)

    trials = run(study, slots=2, on_event=observe)
    assert most == 3
    assert {trial.result.worker for trial in trials} == {"slot-0", "slot-1"}


@pytest.mark.parametrize("strategy", ["staged", "joint"])
@pytest.mark.parametrize("slots", [1, 3])
def test_stopped_after_any_event_it_resumes_without_loss_or_repetition(tmp_path, strategy, slots):
    whole = run(tiny(tmp_path / "whole", strategy), slots)
    for events in range(len(whole)):
        study = tiny(tmp_path / f"{events}", strategy)
        with pytest.raises(Stopped):
            run(study, slots, on_event=stop_after(events))
        finished = {trial.spec.id for trial in study.trials() if trial.result}
        second = Recorder()
        trials = run(Study.load(study.folder), slots, of=second)
        assert stages(trials) == stages(whole)
        assert not finished & set(second.ran)
        assert set(second.ran.values()) <= {1}
        assert all(trial.result for trial in trials)
        if slots == 1:  # one at a time, the sampler sees the same history as without the stop
            assert [trial.spec.id for trial in trials] == [trial.spec.id for trial in whole]


def test_a_finished_search_asks_for_nothing(tmp_path):
    study = tiny(tmp_path / "s")
    run(study)
    second = Recorder()
    run(Study.load(study.folder), of=second)
    assert not second.ran


def test_more_trials_can_be_asked_for_later(tmp_path):
    run(tiny(tmp_path / "s"))
    second = Recorder()
    trials = run(tiny(tmp_path / "s", trials=TRIALS + 2), of=second)
    assert len(second.ran) == 2
    assert stages(trials)["architecture"] == TRIALS + 2


@pytest.mark.parametrize("status", ["failed", "diverged", "out_of_memory", "timed_out"])
def test_trials_without_a_value_count_and_do_not_stop_the_search(tmp_path, status):
    def half(spec):
        good = spec.stage == "weights" or spec.bits[0]
        return outcome(spec) if good else (1.0, RunResult(status=status, reason="as planned"))

    trials = run(tiny(tmp_path / "s", trials=10), of=half)
    assert stages(trials)["architecture"] == 10
    assert {trial.status for trial in trials} == {"finished", status}


def test_a_value_that_is_no_number_counts_as_a_failure(tmp_path):
    def nowhere(spec):
        return 1.0, RunResult.model_construct(
            status="finished", metrics={"mrr": float("nan"), "log_likelihood": float("nan")}, curve=[]
        )

    assert len(run(tiny(tmp_path / "s", "joint"), of=nowhere)) == TRIALS


def test_a_grid_without_a_finished_trial_ends_the_search_with_its_reasons(tmp_path):
    with pytest.raises(SearchFailed, match="the disk is full"):
        run(tiny(tmp_path / "s"), of=lambda spec: (1.0, RunResult(status="failed", reason="the disk is full")))


def test_a_design_asked_again_gets_a_fresh_seed(tmp_path):
    study = new_study(tmp_path / "s", layers=1, search={"sampler": "random", "trials": 12, "strategy": "joint"})
    trials = run(study)
    assert len(trials) == 12  # of 8 designs
    assert len({(trial.spec.bits, trial.spec.seed) for trial in trials}) == 12


def test_a_fixed_architecture_for_another_model_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="fixed_architecture"):
        run(tiny(tmp_path / "s", fixed_architecture="SSS-SSS-SSS"))


def test_events_reach_the_observer(tmp_path):
    seen = []
    trials = run(tiny(tmp_path / "s"), on_event=seen.append)
    assert sorted(event.trial_id for event in seen) == sorted(trial.spec.id for trial in trials)
    assert all(isinstance(event, DoneEvent) for event in seen)


EPOCHS = 4


def with_curve(spec):
    """The outcome of a trial of four epochs, whose curve shows from the first what it will come to."""
    value = 2 + outcome(spec)[1].metrics["mrr"]
    heights = {epoch: value * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1)}
    rows = [
        {"epoch": epoch, "seconds": 2.0 * epoch, "mrr": height, "log_likelihood": height}
        for epoch, height in heights.items()
    ]
    metrics = dict.fromkeys(("mrr", "log_likelihood"), heights[EPOCHS])
    return 2.0 * EPOCHS, RunResult(status="finished", metrics=metrics, curve=rows)


def with_rule(folder, rule, trials=24):
    return tiny(folder, "joint", trials=trials, epochs=EPOCHS, early_stopping=rule)


@pytest.mark.parametrize("rule", ["curve", "median", "foretold"])
def test_hopeless_trials_end_early_and_leave_what_their_curve_foretells(tmp_path, rule):
    trials = run(with_rule(tmp_path / "s", rule), slots=1, of=with_curve)
    pruned = [trial for trial in trials if trial.status == "pruned"]
    whole = {trial.spec.id: with_curve(trial.spec)[1].metrics["mrr"] for trial in trials}
    finished = [trial for trial in trials if trial.status == "finished"]
    assert len(trials) > 24
    assert 23 * EPOCHS < sum(len(trial.result.curve) for trial in trials) <= 24 * EPOCHS
    assert 3 <= len(pruned) <= len(trials) - 6
    assert max(whole.values()) == max(trial.objective for trial in finished)
    for trial in pruned:
        result = trial.result
        assert result.objective is None
        assert 1 <= len(result.curve) < EPOCHS
        assert result.cost.wall_s == 2.0 * len(result.curve)
        assert result.metrics["mrr"] == result.curve[-1]["mrr"]
        assert abs(whole[trial.spec.id] - result.forecast.value) < 2 * result.forecast.stderr
        assert f"epoch {len(result.curve)} of {EPOCHS}" in result.reason


def test_nothing_is_stopped_unless_asked_for(tmp_path):
    assert {trial.status for trial in run(with_rule(tmp_path / "s", "none"), of=with_curve)} == {"finished"}


def test_the_sampler_learns_from_a_stopped_trial(tmp_path):
    """A sampler that is not told of it would propose the same design again and again."""
    study = new_study(
        tmp_path / "s",
        layers=1,
        search={
            "sampler": "ax_bayes", "strategy": "joint", "trials": 8, "weights": {}, "epochs": EPOCHS,
            "early_stopping": "median",
        },
    )  # fmt: skip
    trials = run(study, slots=1, of=with_curve)
    assert any(trial.status == "pruned" for trial in trials)
    assert len({trial.spec.bits for trial in trials}) == 8


def test_the_grid_of_weights_is_stopped_early_too(tmp_path):
    study = tiny(tmp_path / "s", levels=range(12), epochs=EPOCHS, trials=1, early_stopping="median")
    grid = [trial for trial in run(study, slots=1, of=with_curve) if trial.spec.stage == "weights"]
    assert {trial.status for trial in grid} == {"finished", "pruned"}
    assert min(grid, key=lambda trial: abs(trial.spec.weights["align"] - 0.1)).status == "finished"


def test_a_search_stopped_after_any_row_goes_on_as_if_it_had_not_been(tmp_path):
    def said(trials):
        return [(t.spec.id, t.status, t.result.reason, t.result.forecast) for t in trials]

    whole = run(with_rule(tmp_path / "whole", "curve", trials=12), slots=1, of=with_curve)
    assert any(trial.status == "pruned" for trial in whole)
    for events in range(0, 40, 3):
        study = with_rule(tmp_path / f"{events}", "curve", trials=12)
        with pytest.raises(Stopped):
            run(study, slots=1, of=with_curve, on_event=stop_after(events))
        assert said(run(Study.load(study.folder), slots=1, of=with_curve)) == said(whole)


def by_length(spec):
    """The outcome of a trial as long as its fidelity says; a longer one is worth more, with the same order."""
    value = outcome(spec)[1].metrics["mrr"] + 0.02 * int(spec.id[:2], 16) / 256
    rows = [
        {"epoch": epoch, "seconds": 2.0 * epoch, "mrr": 2 + value * epoch, "log_likelihood": 2 + value * epoch}
        for epoch in range(1, spec.fidelity.epochs + 1)
    ]
    metrics = {name: rows[-1][name] for name in ("mrr", "log_likelihood")}
    return 2.0 * len(rows), RunResult(status="finished", metrics=metrics, curve=rows)


def with_fidelities(folder, trials=8, fidelities=({"epochs": 1}, {"users_fraction": 0.25}), **search_fields):
    fields = {"sampler": "ax_bayes", "sampler_options": {"start": 3, "bank": 8}, "epochs": EPOCHS}
    return tiny(folder, "joint", trials=trials, fidelities=list(fidelities), **{**fields, **search_fields})


def costs(trials):
    return sum(trial.spec.fidelity.users_fraction * len(trial.result.curve) for trial in trials) / (0.5 * EPOCHS)


@pytest.mark.parametrize("slots", [1, 3])
def test_cheaper_trials_count_by_their_cost_and_their_designs_are_recommended(tmp_path, slots):
    study = with_fidelities(tmp_path / "s")
    trials = run(study, slots, of=by_length)
    lengths = Counter((trial.spec.fidelity.users_fraction, trial.spec.fidelity.epochs) for trial in trials)
    assert set(lengths) == {(0.5, 4), (0.25, 4), (0.5, 1)}
    assert len(trials) > 8
    assert 7 < costs(trials) <= 8
    # a design that is tried again has a seed of its own
    assert len({(trial.spec.bits, trial.spec.weights["align"], trial.spec.seed) for trial in trials}) == len(trials)
    best = [point for arm, point in arms.candidates(study).items() if arm.startswith("best")]
    assert set(best) <= {trial.spec.point for trial in trials}
    whole = {trial.spec.point for trial in trials if trial.spec.fidelity.cost == 2.0}
    assert set(arms.search_values(study, "mrr")) == whole


def test_a_search_with_fidelities_stopped_after_any_event_goes_on_as_if_it_had_not_been(tmp_path):
    whole = run(with_fidelities(tmp_path / "whole", trials=6), slots=1, of=by_length)
    for events in range(0, 30, 4):
        study = with_fidelities(tmp_path / f"{events}", trials=6)
        with pytest.raises(Stopped):
            run(study, slots=1, of=by_length, on_event=stop_after(events))
        again = run(Study.load(study.folder), slots=1, of=by_length)
        assert [trial.spec for trial in again] == [trial.spec for trial in whole]


def test_trials_at_fidelities_that_the_config_has_no_more_are_left_out(tmp_path):
    run(with_fidelities(tmp_path / "s"), of=by_length)
    study = with_fidelities(tmp_path / "s", fidelities=[])
    before = len(study.trials())
    trials = run(study, of=by_length)
    assert all(trial.spec.fidelity.cost == 2.0 for trial in trials[before:])
    assert sum(trial.spec.fidelity.cost == 2.0 for trial in trials) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_the_study(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=number.name), stopping_on_signals():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_an_interrupt_that_compiled_code_made_its_own_is_a_stop_too():
    with pytest.raises(Stopped, match="SIGINT"), stopping_on_signals():
        raise KeyboardInterrupt


def test_a_second_signal_ends_the_process():
    script = (
        "import os, signal\n"
        "from darec_search.controller import Stopped, stopping_on_signals\n"
        "with stopping_on_signals():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except Stopped:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert ended.returncode == -signal.SIGTERM
