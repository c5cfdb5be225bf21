"""Trials in this process: rows as they come, and trials that are stopped."""

from __future__ import annotations

import pytest
from real_studies import real_study

from darec_search.budget import trial_hours
from darec_search.runners.base import DoneEvent, RowEvent
from darec_search.runners.local import LocalRunner
from darec_search.trial import Fidelity, make_spec
from trainer.training.attempts import Held, recorded
from trainer.training.result import Forecast, Stop

STOP = Stop(reason="stopped after epoch 1 of 3: hopeless", forecast=Forecast(metric="mrr", value=0.02, stderr=0.004))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("local")


def asked(study, *epochs):
    """Requested trials of the serial architecture, of so many epochs each."""
    design = study.space.decode([0] * study.space.bits)
    specs = [
        make_spec(study.id, number, "joint", design, 0, Fidelity(users_fraction=1, epochs=count))
        for number, count in enumerate(epochs)
    ]
    for spec in specs:
        study.request(spec)
    return specs


def to_the_end(runner, stop_at=None):
    """All events of what is under way; the first trial is stopped at the row of epoch `stop_at`."""
    events = []
    while new := runner.wait():
        events += new
        [event] = new
        if isinstance(event, RowEvent) and event.row["epoch"] == stop_at and event.trial_id == events[0].trial_id:
            runner.stop(event.trial_id, STOP)
    return events


def test_a_stopped_trial_ends_with_its_epoch_and_the_next_begins(folder):
    study = real_study(folder, "stop")
    first, second = asked(study, 3, 1)
    with LocalRunner(study) as runner:
        runner.submit(first)
        runner.submit(second)
        events = to_the_end(runner, stop_at=1)
    assert [(type(event), event.trial_id) for event in events] == [
        (RowEvent, first.id), (DoneEvent, first.id), (RowEvent, second.id), (DoneEvent, second.id),
    ]  # fmt: skip
    result = study.trial(first.id).result
    assert result == events[1].result
    assert (result.status, result.reason, result.forecast) == ("pruned", STOP.reason, STOP.forecast)
    assert result.curve == [events[0].row]
    assert result.metrics["mrr"] == events[0].row["mrr"]
    assert result.objective is None
    assert not (study.trial_folder(first.id) / "checkpoint").exists()
    assert study.trial(second.id).status == "finished"


def test_a_stop_at_the_last_row_comes_too_late(folder):
    study = real_study(folder, "late")
    [spec] = asked(study, 2)
    with LocalRunner(study) as runner:
        runner.submit(spec)
        [*_, done] = to_the_end(runner, stop_at=2)
    assert done.result.status == "finished"
    assert done.result.forecast is None


def test_a_trial_given_up_goes_on_and_reports_its_last_row_again(folder):
    study = real_study(folder, "again")
    [spec] = asked(study, 3)
    with LocalRunner(study) as runner:
        runner.submit(spec)
        [before] = runner.wait()
    assert study.trial(spec.id).result is None
    with LocalRunner(study) as runner:
        runner.submit(spec)
        [row, done] = to_the_end(runner, stop_at=1)
    assert row == before
    assert done.result.status == "pruned"
    assert done.result.curve == [row.row]


def test_what_a_trial_took_before_it_was_cut_is_recorded(folder):
    study = real_study(folder, "cut", resources={"cpus_per_lane": 2})
    [spec] = asked(study, 2)
    with LocalRunner(study) as runner:
        runner.submit(spec)
        runner.wait()
    [first] = recorded(study.trial_folder(spec.id))
    assert (first.cut, first.held) == ("it was stopped", Held(cpus=2))
    assert first.seconds > 0
    with LocalRunner(study) as runner:
        runner.submit(spec)
        to_the_end(runner)
    assert study.trial(spec.id).result.lost == ("it was stopped",)
    attempts = recorded(study.trial_folder(spec.id))
    assert [one.cut for one in attempts] == ["it was stopped", None]
    hours = sum(one.seconds for one in attempts) * 2 / 3600
    assert trial_hours(study.config, study.trial(spec.id)) == pytest.approx(hours)
