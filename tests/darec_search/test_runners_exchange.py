"""The mailbox between controller, Tune trials and lanes, without Ray."""

import asyncio
import json
import time
from pathlib import Path

from darec_search.runners.exchange import Exchange
from trainer.training.attempts import ATTEMPTS, recorded
from trainer.training.result import RunResult, Stop, write_atomic
from trainer.worker import Job

WAIT = 0.05


def job(folder: Path, name: str) -> Job:
    return {
        "id": name,
        "config": {},
        "folder": str(folder / name),
        "url": None,
        "time_limit_s": 5.0,
        "keep_model": False,
        "stoppable": False,
        "attempt": 1,
    }


def finished(folder: Path, name: str) -> RunResult:
    result = RunResult(status="finished", metrics={"mrr": 0.5})
    write_atomic(folder / name / "result.json", result.model_dump_json())
    return result


async def started(folder: Path, *names: str, attempts: int = 3) -> Exchange:
    exchange = Exchange(attempts)
    for name in names:
        await exchange.submit(job(folder, name))
    return exchange


async def taken(exchange: Exchange, lane: str, worker: str | None = None) -> Job | None:
    return (await exchange.take(lane, worker or f"{lane}/1", WAIT))["job"]


def test_trials_go_out_in_order_and_once(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a", "b")
        await exchange.submit(job(tmp_path, "a"))
        assert (await taken(exchange, "lane-0"))["id"] == "a"
        assert (await taken(exchange, "lane-1"))["id"] == "b"
        assert await taken(exchange, "lane-2") is None

    asyncio.run(scenario())


def test_a_waiting_lane_gets_a_trial_at_once(tmp_path):
    async def scenario():
        exchange = Exchange(3)
        waiting = asyncio.create_task(exchange.take("lane-0", "lane-0/1", 30))
        await asyncio.sleep(0)
        await exchange.submit(job(tmp_path, "a"))
        assert (await asyncio.wait_for(waiting, 1))["job"]["id"] == "a"

    asyncio.run(scenario())


def test_rows_and_result_reach_controller_and_follower(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a")
        await taken(exchange, "lane-0")
        await exchange.row("a", {"mrr": 0.1})
        assert await exchange.follow("a", 0, WAIT) == ([{"mrr": 0.1}], False)
        await exchange.done("a", "lane-0/1", finished(tmp_path, "a").model_dump(mode="json"))
        assert await exchange.follow("a", 1, WAIT) == ([], True)
        assert [message["kind"] for message in await exchange.messages(WAIT)] == ["row", "done"]
        assert await exchange.messages(WAIT) == []

    asyncio.run(scenario())


def stoppable(folder: Path, name: str) -> Job:
    return {**job(folder, name), "stoppable": True}


def test_a_row_is_answered_when_the_controller_has_looked_at_it(tmp_path):
    async def scenario(look):
        exchange = Exchange(3)
        await exchange.submit(stoppable(tmp_path, "a"))
        await taken(exchange, "lane-0")
        answer = asyncio.create_task(exchange.row("a", {"epoch": 1, "mrr": 0.1}))
        assert [message["kind"] for message in await exchange.messages(WAIT)] == ["row"]
        await asyncio.sleep(0.01)
        assert not answer.done()
        await look(exchange)
        return await asyncio.wait_for(answer, 1)

    async def go_on(exchange):
        await exchange.messages(0.001)

    async def end(exchange):
        await exchange.stop("a", Stop(reason="hopeless"))

    assert asyncio.run(scenario(go_on)) is None
    assert asyncio.run(scenario(end)) == Stop(reason="hopeless")


def test_a_stop_outlives_the_worker_that_it_was_meant_for(tmp_path):
    async def scenario():
        exchange = Exchange(3)
        await exchange.submit(stoppable(tmp_path, "a"))
        await taken(exchange, "lane-0")
        await exchange.stop("a", Stop(reason="hopeless"))
        await exchange.lost("lane-0", "killed")
        await taken(exchange, "lane-1")
        assert await exchange.row("a", {"epoch": 1, "mrr": 0.1}) == Stop(reason="hopeless")

    asyncio.run(scenario())


def test_a_row_that_comes_again_stands_once_in_the_curve(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a")
        for _ in range(2):
            await exchange.row("a", {"epoch": 1, "mrr": 0.1})
        await exchange.row("a", {"epoch": 2, "mrr": 0.1})
        rows, _ = await exchange.follow("a", 0, WAIT)
        assert [row["epoch"] for row in rows] == [1, 2]

    asyncio.run(scenario())


def test_a_lost_trial_goes_first_to_whichever_lane_is_free(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a", "b", "c")
        await taken(exchange, "lane-0")
        await exchange.lost("lane-0", "killed")
        again = await taken(exchange, "lane-1")
        assert (again["id"], again["attempt"]) == ("a", 2)

    asyncio.run(scenario())


def test_a_lane_that_starts_anew_gives_back_what_it_had(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a")
        await taken(exchange, "lane-0", "lane-0/1")
        again = await taken(exchange, "lane-0", "lane-0/2")
        assert (again["id"], again["attempt"]) == ("a", 2)

    asyncio.run(scenario())


def test_too_many_lost_workers_are_recorded_as_failed_with_the_last_reason(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a", attempts=2)
        for reason in ("first", "second"):
            await taken(exchange, "lane-0")
            await exchange.lost("lane-0", reason)
        assert await taken(exchange, "lane-0") is None

    asyncio.run(scenario())
    result = RunResult.model_validate_json((tmp_path / "a" / "result.json").read_text())
    assert (result.status, result.attempts) == ("failed", 2)
    assert result.reason == "its worker died 2 times (last: second)"


def test_an_attempt_ends_when_its_worker_is_lost_and_says_why(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a", attempts=2)
        for reason in ("first", "second"):
            await taken(exchange, "lane-0")
            row = {"attempt": reason, "started_at": time.time() - 60, "worker": "lane-0/1", "cpus": 1, "gpus": 0}
            with (tmp_path / "a" / ATTEMPTS).open("a") as file:
                file.write(json.dumps(row) + "\n")
            await exchange.lost("lane-0", reason)

    (tmp_path / "a").mkdir()
    asyncio.run(scenario())
    assert [round(one.seconds) for one in recorded(tmp_path / "a")] == [60, 60]
    assert RunResult.model_validate_json((tmp_path / "a" / "result.json").read_text()).lost == ("first", "second")


def test_a_worker_ended_by_the_time_limit_is_not_replaced_for_that_trial(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a")
        await taken(exchange, "lane-0")
        write_atomic(tmp_path / "a" / "stacks.txt", "Timeout (0:00:05)!\n")
        await exchange.lost("lane-0", "killed")
        assert await taken(exchange, "lane-0") is None
        return await exchange.messages(WAIT)

    [message] = asyncio.run(scenario())
    assert message["content"]["status"] == "timed_out"
    assert "5 s" in message["content"]["reason"]


def test_a_worker_that_died_after_its_work_loses_nothing(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a")
        await taken(exchange, "lane-0")
        finished(tmp_path, "a")
        await exchange.lost("lane-0", "killed")
        return await exchange.messages(WAIT)

    [message] = asyncio.run(scenario())
    assert message["kind"] == "done"
    assert message["content"]["metrics"] == {"mrr": 0.5}


def test_the_first_of_two_results_counts(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a")
        await taken(exchange, "lane-0")
        result = finished(tmp_path, "a").model_dump(mode="json")
        await exchange.done("a", "lane-0/1", result)
        await exchange.done("a", "lane-1/1", {**result, "metrics": {"mrr": 0.9}})
        return await exchange.messages(WAIT)

    [message] = asyncio.run(scenario())
    assert message["content"]["metrics"] == {"mrr": 0.5}


def test_a_lane_that_never_gets_to_work_is_reported_as_broken(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a")
        for _ in range(3):
            assert await exchange.messages(0.001) == []
            await exchange.lost("lane-0", "ImportError: no such module")
        return await exchange.messages(WAIT)

    [message] = asyncio.run(scenario())
    assert message["kind"] == "broken"
    assert message["content"]["lane"] == "lane-0"


def test_closing_sends_idle_lanes_home_and_names_the_busy_ones(tmp_path):
    async def scenario():
        exchange = await started(tmp_path, "a")
        await taken(exchange, "lane-0")
        idle = asyncio.create_task(exchange.take("lane-1", "lane-1/1", 30))
        following = asyncio.create_task(exchange.follow("a", 0, 30))
        await asyncio.sleep(0)
        assert await exchange.close() == ["lane-0"]
        assert await asyncio.wait_for(idle, 1) == {"closed": True, "job": None}
        assert await asyncio.wait_for(following, 1) == ([], True)

    asyncio.run(scenario())


def test_lanes_are_called_as_trials_wait_for_them(tmp_path):
    async def scenario():
        exchange = Exchange(3, ["lane-0", "lane-1"])
        called = [await exchange.submit(job(tmp_path, name)) for name in ("a", "a", "b", "c")]
        assert called == [["lane-0"], [], ["lane-1"], []]

    asyncio.run(scenario())


async def with_an_idle_lane(folder: Path) -> Exchange:
    """Two lanes, of which one has a trial and one had one."""
    exchange = Exchange(3, ["lane-0", "lane-1"], idle_s=WAIT)
    for name in ("a", "b"):
        await exchange.submit(job(folder, name))
    await taken(exchange, "lane-0")
    await taken(exchange, "lane-1")
    await exchange.done("a", "lane-0/1", finished(folder, "a").model_dump(mode="json"))
    return exchange


def test_an_idle_lane_is_sent_home_and_called_again(tmp_path):
    async def scenario():
        exchange = await with_an_idle_lane(tmp_path)
        assert await exchange.take("lane-0", "lane-0/1", WAIT / 2) == {"closed": False, "job": None}
        assert await asyncio.wait_for(exchange.take("lane-0", "lane-0/1", 30), 1) == {"closed": True, "job": None}
        assert await exchange.submit(job(tmp_path, "c")) == ["lane-0"]
        assert (await taken(exchange, "lane-0", "lane-0/2"))["id"] == "c"

    asyncio.run(scenario())


def test_a_trial_in_time_keeps_an_idle_lane(tmp_path):
    async def scenario():
        exchange = await with_an_idle_lane(tmp_path)
        waiting = asyncio.create_task(exchange.take("lane-0", "lane-0/1", 30))
        await asyncio.sleep(WAIT / 5)
        assert await exchange.submit(job(tmp_path, "c")) == []
        assert (await asyncio.wait_for(waiting, 1))["job"]["id"] == "c"

    asyncio.run(scenario())


def test_no_more_lanes_go_home_than_there_are_trials_left_over(tmp_path):
    """A trial that lost its worker finds a lane, whatever lanes were idle meanwhile."""

    async def scenario():
        exchange = await with_an_idle_lane(tmp_path)
        assert (await exchange.take("lane-0", "lane-0/1", 30))["closed"]
        await exchange.lost("lane-1", "killed")
        assert (await taken(exchange, "lane-1", "lane-1/2"))["id"] == "b"
        # the last lane stays as long as it has a trial, and goes when it has none
        await exchange.done("b", "lane-1/2", finished(tmp_path, "b").model_dump(mode="json"))
        assert (await exchange.take("lane-1", "lane-1/2", 30))["closed"]
        assert await exchange.submit(job(tmp_path, "c")) == ["lane-0"]

    asyncio.run(scenario())
