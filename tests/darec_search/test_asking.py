"""Many at a time, a sampler that thinks beside the loop, and what a study that was stopped goes on with."""

import hashlib
import statistics
import threading
import time
from collections import deque

import pytest
from study_folders import LEVELS, new_study

from darec_search import arms, samplers
from darec_search.controller import search
from darec_search.runners.base import DoneEvent, Runner
from darec_search.samplers.base import Options, Sampler, unseen
from darec_search.space import SearchSpace
from darec_search.study import Study
from trainer.training.result import Cost, Forecast, RunResult, write_atomic

TRIALS = 9
SAMPLERS = {
    "random": {},
    "ax_bayes": {"start": 2, "bank": 16},
    "optuna_tpe": {"startup": 2},
    "optuna_cmaes": {"population": 3},
}


class Broken(RuntimeError):
    """The study's process dies here."""


class Lanes(Runner):
    """Which of the running trials ends next depends on nothing but which are running, so a restart changes no order.

    Args:
        study: where results are written.
        slots: trials at a time.
        key: of the trials that are running, the one with the smallest key ends next.
        submits: trials that can be submitted before the process dies.
    """

    def __init__(self, study, slots, key, submits=10**9):
        self.slots, self._study, self._key, self._left = slots, study, key, submits
        self._queue = deque()

    def submit(self, spec):
        if self._left == 0:
            raise Broken
        self._left -= 1
        self._queue.append(spec)

    def wait(self, timeout=None):
        if not self._queue:
            return []
        spec = min(list(self._queue)[: self.slots], key=self._key)
        self._queue.remove(spec)
        clock = sum(trial.result is not None for trial in self._study.trials())
        result = self.result(spec, Cost(ended_at=clock))
        write_atomic(self._study.trial_folder(spec.id) / "result.json", result.model_dump_json())
        return [DoneEvent(spec.id, result)]

    def result(self, spec, cost):
        if spec.bits[:3] == (1, 1, 1) and spec.stage != "weights":
            return RunResult(status="out_of_memory", reason="as planned", cost=cost)
        return RunResult(status="finished", metrics=metrics(spec), cost=cost)

    def stop(self, trial_id, stop):
        """No trial has rows to be stopped by."""

    def close(self):
        self._queue.clear()


class InProcessLanes(Lanes):
    in_process = True


class Pruning(InProcessLanes):
    """Half of the trials are stopped after one of eight epochs, and leave the others for more."""

    def result(self, spec, cost):
        if spec.bits[0]:
            return super().result(spec, cost)
        forecast = Forecast(metric="mrr", value=metrics(spec)["mrr"], stderr=0.1)
        row = {"epoch": 1.0, **metrics(spec)}
        return RunResult(status="pruned", metrics=metrics(spec), curve=[row], forecast=forecast, cost=cost)


def metrics(spec):
    value = sum(spec.bits) / 10 - spec.bits[0] * spec.bits[1] / 5 - abs(spec.weights.get("align", 0.1) - 0.1)
    value += (spec.seed % 97) / 1e4
    return {"mrr": value, "log_likelihood": value}


def shuffled(spec):
    return hashlib.sha256(spec.id.encode()).hexdigest()


def first_come(spec):
    return spec.number


def tiny(folder, sampler="random", trials=TRIALS, strategy="joint", **fields):
    options = SAMPLERS.get(sampler, {})
    search_fields = {"sampler": sampler, "sampler_options": options, "trials": trials, "strategy": strategy, **fields}
    return new_study(folder, layers=2, search={"weights": {"align": list(LEVELS)}, **search_fields})


def run(study, slots=1, on_event=None, key=shuffled, lanes=InProcessLanes, submits=10**9):
    with lanes(study, slots, key, submits) as runner:
        search(study, runner, on_event)
    return study.trials()


def asked(trials):
    """What was asked, to the last bit."""
    return [trial.spec for trial in trials]


def dies_after(events):
    left = [events]

    def observe(event):
        if left[0] == 0:
            raise Broken
        left[0] -= 1

    return observe


def replayed(study):
    """Ask a fresh sampler for every proposal of a joint search once more, from what the specs say that it knew."""
    config = study.config.search
    sampler = samplers.create(config.sampler, study.space, study.config.seed, **config.sampler_options)
    unknown, points = {}, []
    for trial in study.trials():
        for trial_id in trial.spec.told:
            known = unknown.pop(trial_id)
            if known.objective is None:
                sampler.tell_failed(known.spec.point, known.result.reason)
            else:
                sampler.tell(known.spec.point, known.search_value(config.objective))
        points.append(sampler.ask([pending.spec.point for pending in unknown.values()]))
        unknown[trial.spec.id] = trial
    return points


@pytest.mark.parametrize("sampler", ["random", "ax_bayes", "optuna_tpe"])
@pytest.mark.parametrize(("slots", "ahead"), [(1, 0), (4, 0), (3, 1)])
def test_killed_after_any_trial_it_asks_what_it_would_have_asked(tmp_path, sampler, slots, ahead):
    whole = asked(run(tiny(tmp_path / "whole", sampler, ahead=ahead), slots))
    for events in range(len(whole)):
        study = tiny(tmp_path / f"{events}", sampler, ahead=ahead)
        with pytest.raises(Broken):
            run(study, slots, dies_after(events))
        assert asked(run(Study.load(study.folder), slots)) == whole


@pytest.mark.parametrize("ways", [{"weight_repeats": 2}, {"weight_search": "one_at_a_time", "weights_again": True}])
@pytest.mark.parametrize("slots", [1, 4])
def test_killed_between_asking_and_launching_it_asks_what_it_would_have_asked(tmp_path, slots, ways):
    ways = {**ways, "weights": {"align": [0.01, 0.1], "contrastive": [0.0, 0.1]}}
    whole = asked(run(tiny(tmp_path / "whole", trials=4, strategy="staged", **ways), slots))
    for submits in range(len(whole)):
        study = tiny(tmp_path / f"{submits}", trials=4, strategy="staged", **ways)
        with pytest.raises(Broken):
            run(study, slots, submits=submits)
        assert asked(run(Study.load(study.folder), slots)) == whole


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_killed_again_and_again_it_asks_what_it_would_have_asked(tmp_path, sampler):
    whole = asked(run(tiny(tmp_path / "whole", sampler), 4))
    study = tiny(tmp_path / "s", sampler)
    for _ in whole:
        try:
            run(Study.load(study.folder), 4, dies_after(1))
        except Broken:
            continue
        break
    assert asked(study.trials()) == whole


def test_a_search_made_longer_goes_on_as_if_it_had_been_so_long_from_the_start(tmp_path):
    whole = asked(run(tiny(tmp_path / "whole", "optuna_tpe", trials=12), 3, key=first_come))
    run(tiny(tmp_path / "s", "optuna_tpe", trials=7), 3, key=first_come)
    assert asked(run(tiny(tmp_path / "s", "optuna_tpe", trials=12), 3, key=first_come)) == whole


def test_results_that_nobody_took_in_are_told_one_by_one(tmp_path):
    """Two trials end while the controller is gone; the next proposal knows the first of them, as it would have."""
    whole = asked(run(tiny(tmp_path / "whole", "optuna_tpe"), 3))
    assert [len(spec.told) for spec in whole] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    study = tiny(tmp_path / "s", "optuna_tpe")
    with pytest.raises(Broken):
        run(study, 3, dies_after(2))
    orphans = InProcessLanes(study, 3, shuffled)
    for trial in study.trials():
        if trial.result is None:
            orphans.submit(trial.spec)
    orphans.wait()
    assert len(study.trials()) == 5
    assert asked(run(Study.load(study.folder), 3))[:6] == whole[:6]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_proposal_follows_from_what_its_spec_says_it_knew(tmp_path, sampler):
    study = tiny(tmp_path / "s", sampler, ahead=1)
    with pytest.raises(Broken):
        run(study, 3, dies_after(4))
    wider = tiny(tmp_path / "s", sampler, ahead=0, trials=11)
    assert replayed(wider) == [trial.spec.point for trial in wider.trials()]
    trials = run(wider, 5)
    assert replayed(wider) == [trial.spec.point for trial in trials]


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of four where eight trials are under way; otherwise it takes more than 64."""
    monkeypatch.setattr(samplers, "_ALONE_UP_TO", 4)
    monkeypatch.setattr(samplers, "_BLOCKS", 2)


def told(trials):
    return [len(trial.spec.told) for trial in trials]


WIDE = {"sampler": "ax_bayes", "trials": 15}


def test_a_block_knows_the_same_and_holds_no_design_twice(tmp_path, blocks):
    trials = run(tiny(tmp_path / "s", **WIDE), 8)
    assert told(trials) == [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0]
    for place in range(8, 15):
        known = {trial_id for trial in trials[: place + 1] for trial_id in trial.spec.told}
        under_way = [trial.spec.point for trial in trials[:place] if trial.spec.id not in known]
        assert trials[place].spec.point not in under_way


def test_killed_at_any_trial_of_a_block_it_asks_what_it_would_have_asked(tmp_path, blocks):
    whole = asked(run(tiny(tmp_path / "whole", **WIDE), 8))
    for last in [*({"submits": count} for count in range(7, 15)), *({"on_event": dies_after(n)} for n in (0, 3, 7))]:
        study = tiny(tmp_path / str(len(list(tmp_path.iterdir()))), **WIDE)
        with pytest.raises(Broken):
            run(study, 8, **last)
        assert asked(run(Study.load(study.folder), 8)) == whole


def test_a_block_that_the_budget_cuts_is_asked_for_again_after_a_kill(tmp_path, blocks):
    """Once all is under way or spent, a proposal waits for what a stopped trial leaves, in the middle of a block."""
    budget = {**WIDE, "trials": 9}
    whole = run(tiny(tmp_path / "whole", **budget), 8, lanes=Pruning)
    assert any(place % 4 and trial.spec.told for place, trial in enumerate(whole))
    for submits in range(6, len(whole)):
        study = tiny(tmp_path / f"{submits}", **budget)
        with pytest.raises(Broken):
            run(study, 8, submits=submits, lanes=Pruning)
        assert asked(run(Study.load(study.folder), 8, lanes=Pruning)) == asked(whole)


def test_blocks_of_another_size_go_on_without_a_design_twice(tmp_path, blocks):
    study = tiny(tmp_path / "s", **WIDE)
    with pytest.raises(Broken):
        run(study, 3, dies_after(5))
    assert len(run(Study.load(study.folder), 8)) == WIDE["trials"]
    points = [trial.spec.point for trial in study.trials()]
    assert len(set(points)) == len(points)


@pytest.mark.parametrize(("sampler", "trials"), [("random", 100), ("optuna_tpe", 80), ("ax_bayes", 68)])
def test_sixty_four_at_a_time_none_twice(tmp_path, sampler, trials):
    specs = asked(run(tiny(tmp_path / "s", sampler, trials=trials), 64))
    under_way, most = {}, 0
    for spec in specs:
        for trial_id in spec.told:
            del under_way[trial_id]
        assert spec.point not in under_way.values()
        under_way[spec.id] = spec.point
        most = max(most, len(under_way))
    assert (len(specs), most) == (trials, 64)


class SlowSampler(Sampler):
    """Random designs that depend on all results; thinks as long as `wait` takes."""

    Options = Options
    wait = staticmethod(lambda: None)

    def _propose(self, pending, rng):
        type(self).wait()
        best = max((o.value for o in self.history.observations), default=0.0)
        rng = type(rng)(type(rng.bit_generator)([int(1e6 * abs(best)), len(self.history), len(pending)]))
        return unseen(self.space, rng, self.history.points(), pending)


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setitem(samplers.SAMPLERS, "slow", f"{__name__}:SlowSampler")
    yield SlowSampler
    SlowSampler.wait = staticmethod(lambda: None)


def test_results_are_taken_in_while_the_sampler_thinks(tmp_path, slow):
    """The first proposal that needs a result comes only after every other trial's end has been reported."""
    slots, taken, asks = 4, threading.Semaphore(0), []

    def wait():
        asks.append(threading.current_thread())
        if len(asks) == slots + 1:
            assert all(taken.acquire(timeout=30) for _ in range(slots)), "results waited for the sampler"

    slow.wait = staticmethod(wait)
    trials = run(tiny(tmp_path / "s", "slow"), slots, lambda event: taken.release(), lanes=Lanes)
    assert len(trials) == len(asks) == TRIALS
    assert threading.main_thread() not in asks
    assert not any(thread.is_alive() for thread in asks)


class LastWaits(Lanes):
    """The second trial ends only once the third is there."""

    def wait(self, timeout=None):
        if [spec.number for spec in self._queue] == [1]:
            assert timeout is not None, "a free lane waits for a result, and the proposal for it is on its way"
            return []
        return super().wait(timeout)


def test_a_proposal_is_launched_as_soon_as_it_is_there(tmp_path, slow):
    slow.wait = staticmethod(lambda: time.sleep(0.2))
    assert len(run(tiny(tmp_path / "s", "slow", trials=4), 2, key=first_come, lanes=LastWaits)) == 4


def test_how_long_the_sampler_thinks_changes_nothing(tmp_path, slow):
    quick = asked(run(tiny(tmp_path / "quick", "slow"), 4, key=first_come, lanes=Lanes))
    slow.wait = staticmethod(lambda: time.sleep(0.12))
    assert asked(run(tiny(tmp_path / "slow", "slow"), 4, key=first_come, lanes=Lanes)) == quick
    assert asked(run(tiny(tmp_path / "inside", "slow"), 4, key=first_come)) == quick


def test_what_goes_wrong_in_the_sampler_ends_the_search(tmp_path, slow):
    def wait():
        raise ArithmeticError("no matrix is that singular")

    slow.wait = staticmethod(wait)
    with pytest.raises(ArithmeticError, match="singular"):
        run(tiny(tmp_path / "s", "slow"), 2, lanes=Lanes)


class SameAgain(Sampler):
    """Wants one design over and over."""

    Options = Options

    def _propose(self, pending, rng):
        return next(iter(SearchSpace(self.space.layers, weights=self.space.weights).points()))


def test_a_design_asked_for_again_gets_fresh_seeds_and_tells_each(tmp_path, monkeypatch):
    monkeypatch.setitem(samplers.SAMPLERS, "same", f"{__name__}:SameAgain")
    study = tiny(tmp_path / "s", "same", trials=5)
    trials = run(study, 2, key=first_come)
    assert [trial.spec.seed for trial in trials] == [0, 1, 2, 3, 4]
    assert [trial.spec.told for trial in trials] == [(), (), *((trial.spec.id,) for trial in trials[:3])]
    (point,) = {trial.spec.point for trial in trials}
    mean = statistics.fmean(trial.objective for trial in trials)
    assert arms.search_values(study, "mrr") == {point: pytest.approx(mean)}
