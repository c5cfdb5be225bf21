"""Addresses that are no Ray cluster are refused quickly and in one sentence."""

import socket
import threading
import time
from contextlib import suppress

import pytest
from study_folders import new_study

from darec_search.runners.cluster import connect, open_to_others
from trainer.errors import BadInput


def config(folder, address):
    return new_study(folder / "s", resources={"address": address}).config


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "host:port"),
        ("head:port", "host:port"),
        ("ray://head:10001", "Ray Client"),
        ("no-such-host.invalid:6379", "no Ray cluster answers"),
    ],
)
def test_addresses_that_cannot_be(tmp_path, address, says):
    with pytest.raises(BadInput, match=says) as caught:
        connect(config(tmp_path, address))
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_where_nobody_listens(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(BadInput, match="no Ray cluster answers"):
        connect(config(tmp_path, f"127.0.0.1:{port}"))


def test_the_environment_names_the_cluster_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(BadInput, match="nonsense"):
        connect(config(tmp_path, None))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_port_where_something_else_listens(tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection, suppress(ConnectionError):
                connection.sendall(answer)
                while connection.recv(100):
                    pass

        threading.Thread(target=serve, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(BadInput, match="no Ray cluster answers"):
            connect(config(tmp_path, f"127.0.0.1:{server.getsockname()[1]}"))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("address", "environment", "open_"),
    [
        ("127.0.0.1:6379", {}, False),
        ("10.0.0.7:6379", {}, True),
        ("10.0.0.7:6379", {"RAY_AUTH_MODE": "disabled"}, True),
        ("10.0.0.7:6379", {"RAY_AUTH_MODE": "token"}, False),
        ("10.0.0.7:6379", {"RAY_USE_TLS": "1"}, False),
    ],
)
def test_a_cluster_without_a_token_is_told_apart(address, environment, open_):
    assert open_to_others(address, environment) is open_
