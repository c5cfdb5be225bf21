"""The server: its OpenAPI contract by generated requests, and one round over a real socket."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from darec_search.export import load
from darec_search.serve import LIMITS, create_app


@pytest.fixture(scope="module")
def recommender(finished):
    return load(finished.model)


@pytest.fixture
def post(recommender):
    from starlette.testclient import TestClient

    client = TestClient(create_app(recommender))
    return lambda body: client.post("/recommend", json=body)


@pytest.mark.parametrize("place", [("/health", "GET"), ("/recommend", "POST")], ids=lambda place: place[0])
def test_every_answer_is_what_openapi_says(recommender, place):
    api = schemathesis.openapi.from_asgi("/openapi.json", create_app(recommender))
    path, method = place

    @given(case=api[path][method].as_strategy())
    @settings(
        max_examples=15, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def answers(case):
        # What OpenAPI allows may name unknown items, which is refused; what it forbids may be a number for a text.
        case.call_and_validate(excluded_checks=[negative_data_rejection, positive_data_acceptance])

    answers()


def test_it_answers_as_the_recommender_does(post, recommender):
    ids = recommender.item_ids[:3]
    titles = recommender.titles(ids)
    answer = post({"histories": [{"history": ids}, {"history": titles[:1] + ids[1:], "user": "new"}], "top": 4})
    assert answer.status_code == 200
    expected = [[item.id, item.title, pytest.approx(item.score)] for item in recommender.recommend([ids], 4)[0]]
    for found in answer.json():
        assert found["history"] == ids
        assert [[item["id"], item["title"], item["score"]] for item in found["items"]] == expected
    left = post({"histories": [{"history": ids}], "top": 100, "exclude_seen": True}).json()[0]["items"]
    assert not {item["id"] for item in left} & set(ids)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"histories": []}, "histories: List should have at least 1"),
        ({"histories": [{"history": ["x"] * (LIMITS.items + 1)}]}, "at most 1000"),
        ({"histories": [{"history": ["x"]}] * (LIMITS.histories + 1)}, "at most 256"),
        ({"histories": [{"history": ["x"]}], "top": 0}, "body.top"),
        ({"histories": [{"history": ["x"]}], "top": 10**9}, "body.top"),
        ({"histories": [{"history": ["x" * 1001]}]}, "at most 1000 characters"),
        ({"histories": [{"history": ["x"]}], "news": 1}, "body.news"),
        (
            {"histories": [{"history": ["no such thing"]}]},
            "history 1: 'no such thing': is unknown to this model",
        ),
    ],
)
def test_what_it_refuses_it_says_in_one_sentence(post, body, words):
    answer = post(body)
    assert answer.status_code == (400 if "unknown" in words else 422)
    assert words in answer.json()["error"]
    assert list(answer.json()) == ["error"]


def test_a_real_server_answers_and_warns_of_a_host_that_is_not_local(finished, recommender):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "darec_search",
        "serve",
        str(finished.model),
        "--host",
        "0.0.0.0",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        health = json.loads(_when_it_answers(server, f"http://127.0.0.1:{port}/health"))
        assert (health["status"], health["items"]) == ("ready", len(recommender.item_ids))
        body = json.dumps({"histories": [{"history": recommender.item_ids[:1]}], "top": 2}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/recommend", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            (found,) = json.loads(answer.read())
        assert [item["id"] for item in found["items"]] == [
            item.id for item in recommender.recommend([recommender.item_ids[:1]], 2)[0]
        ]
    finally:
        server.terminate()
        said = server.communicate(timeout=60)[1]
    assert re.search(r"0\.0\.0\.0 is not this machine alone", " ".join(said.split()))


def _when_it_answers(server, url):
    until = time.monotonic() + 240
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"no answer from {url}")
