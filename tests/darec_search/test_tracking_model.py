"""The logged model, loaded and served by MLflow."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pydantic
import pytest
from study_folders import open_store

from darec_search.export import load
from darec_search.study import Study
from darec_search.tracking import TRACKERS

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def logged(finished, tmp_path_factory):
    """The tiny study's final run in MLflow: its store, and the folder of the champion's files."""
    folder = shutil.copytree(finished.study.folder, tmp_path_factory.mktemp("logged") / "study")
    uri = open_store(folder / "mlflow.db")
    TRACKERS["mlflow"](Study.load(folder), uri).sync()
    version = mlflow.MlflowClient(uri, uri).get_model_version_by_alias("tiny", "champion")
    return uri, version.source.removeprefix("file://")


@pytest.fixture(scope="module")
def recommender(finished):
    return load(finished.model)


def test_it_answers_as_the_export_does(logged, recommender):
    model = mlflow.pyfunc.load_model(logged[1])
    histories = [list(recommender.item_ids[:3]), [recommender.item_ids[5]]]
    found = model.predict(pd.DataFrame({"history": histories}), params={"top": 4})["items"]
    expected = recommender.recommend(histories, top=4)
    assert [[item["id"] for item in row] for row in found] == [[item.id for item in row] for row in expected]
    assert [item["title"] for item in found[0]] == [item.title for item in expected[0]]
    assert [item["score"] for item in found[1]] == pytest.approx([item.score for item in expected[1]])


def test_known_users_are_known(logged, finished, recommender):
    model = mlflow.pyfunc.load_model(logged[1])
    history, user = list(recommender.item_ids[:2]), finished.study.dataset().user_ids[0]
    (row,) = model.predict(pd.DataFrame({"history": [history], "user": [user]}))["items"]
    (expected,) = recommender.recommend([history], users=[user])
    assert [item["score"] for item in row] == pytest.approx([item.score for item in expected])
    assert len(row) == 10


def test_an_unknown_item_is_one_clear_sentence(logged):
    model = mlflow.pyfunc.load_model(logged[1])
    with pytest.raises(mlflow.MlflowException, match="item 'nobody' is unknown to this model"):
        model.predict(pd.DataFrame({"history": [["nobody"]]}))


def test_it_has_a_signature_an_example_its_code_and_pins_and_no_pickles(logged, finished):
    folder = Path(logged[1])
    model = mlflow.models.Model.load(folder)
    assert model.signature.inputs.input_names() == ["history", "user"]
    assert model.signature.params.params[0].name == "top"
    example, params = model.load_input_example(str(folder)), model.load_input_example_params(str(folder))
    assert len(next(iter(example["history"]))) == 3
    assert params == {"top": 3}
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in requirements)
    assert f"pydantic=={pydantic.VERSION}" in requirements
    assert (folder / "code" / "darec_search" / "export.py").exists()
    assert (folder / "code" / "trainer" / "inference.py").exists()
    assert not [file for pattern in ("*.pkl", "*.pickle", "*.bin", "*.pyc") for file in folder.rglob(pattern)]
    weights = folder / "artifacts" / "best" / "model.safetensors"
    assert weights.read_bytes() == (finished.model / "model.safetensors").read_bytes()


def post(port: int, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mlflow_serves_it(logged, recommender, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny@champion", "--env-manager", "local"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # as activated
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen(
        [*serve, "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path,
        env={**environment, "MLFLOW_TRACKING_URI": logged[0], "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_until_up(port, server, tmp_path / "serve.log")
        history = list(recommender.item_ids[:3])
        status, answer = post(port, {"dataframe_records": [{"history": history}], "params": {"top": 5}})
        assert status == 200
        (expected,) = recommender.recommend([history], top=5)
        items = answer["predictions"][0]["items"]
        assert [(item["id"], item["title"]) for item in items] == [(item.id, item.title) for item in expected]
        assert [item["score"] for item in items] == pytest.approx([item.score for item in expected], abs=1e-5)
        status, answer = post(port, {"dataframe_records": [{"history": ["nobody"]}]})
        assert (status, "item 'nobody' is unknown" in json.dumps(answer)) == (400, True)
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its own session: the command and the server it started
        server.wait(30)
        log.close()


def wait_until_up(port: int, server: subprocess.Popen, log) -> None:
    end = time.monotonic() + 500
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
