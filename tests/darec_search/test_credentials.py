"""Secrets come from the environment when they are used, and are written down nowhere."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import yaml
from tiny_studies import study_file

from darec_search import cli
from darec_search.config import TrackingConfig, load_study
from darec_search.credentials import RedactingFilter, redact, resolve
from trainer.errors import BadInput

PLANTED = "pl4nted-s3cret"
WITH_SECRET = [
    "http://ann:hunter2@host:5000",
    "postgresql://ann:hun/ter2@db/x",
    "postgresql://ann@db/x?sslmode=on&password=hunter2",
    "postgresql://ann:${NAME}hunter2@db/x",
]
WITHOUT = ["http://host:5000/path", "sqlite:////a/b.db", "postgresql://ann:${NAME}@db/x", "${URI}", "http://ann@host"]


def test_redact_leaves_everything_but_secrets():
    assert redact("http://host:5000/path") == "http://host:5000/path"
    assert redact("postgresql://ann:pa$s@db:5432/x?sslmode=on&password=b") == (
        "postgresql://ann:***@db:5432/x?sslmode=on&password=***"
    )
    assert redact("no postgresql://ann:hun/ter2@db/x") == "no postgresql://ann:***@db/x"
    assert redact("postgresql://ann:${NAME}@db/x") == "postgresql://ann:${NAME}@db/x"


@pytest.mark.parametrize("uri", WITH_SECRET)
def test_a_uri_that_holds_a_password_is_refused_without_repeating_it(tmp_path, uri):
    file = study_file(tmp_path, tracking={"uri": uri})
    with pytest.raises(BadInput, match=r"tracking.uri: .* \$\{NAME\}") as caught:
        load_study(file)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize("uri", WITHOUT)
def test_a_uri_that_names_its_password_or_has_none_is_stored_as_it_is(uri):
    assert TrackingConfig(uri=uri).uri == uri


def test_references_are_resolved_when_they_are_used(monkeypatch):
    monkeypatch.setenv("WORD", "a@b/c:d")
    monkeypatch.setenv("WHOLE", "http://host:1/")
    assert resolve("postgresql://ann:${WORD}@db/x", "tracking.uri") == "postgresql://ann:a%40b%2Fc%3Ad@db/x"
    assert resolve("${WHOLE}", "tracking.uri") == "http://host:1/"
    monkeypatch.delenv("WORD")
    with pytest.raises(BadInput, match="environment variable WORD is not set"):
        resolve("postgresql://ann:${WORD}@db/x", "tracking.uri")


def test_a_missing_variable_is_told_before_anything_is_spent(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    file = study_file(tmp_path, tracking={"uri": "http://ann:${NOT_THERE}@127.0.0.1:9"})
    assert cli.main(["run", str(file)]) == 2
    assert "NOT_THERE is not set" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_log_lines_of_libraries_lose_their_passwords():
    record = logging.LogRecord("x", logging.WARNING, "", 0, "no answer from %s", ("http://a:hunter2@host",), None)
    assert RedactingFilter().filter(record)
    assert record.getMessage() == "no answer from http://a:***@host"


@pytest.mark.timeout(900)
def test_planted_secrets_are_nowhere_after_a_run(tmp_path):
    """Study folder, MLflow store and terminal of a whole study, whose MLflow server does not answer, and of a sync."""
    store = tmp_path / "mlflow.db"
    file = study_file(
        tmp_path,
        tracking={"uri": "http://me:${PLANTED}@127.0.0.1:9"},
        search={"trials": 1, "weights": {}},
        promotion={"candidates": 1, "repeats": 1},
    )
    names = ("PLANTED", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN")
    said = darec_search(dict.fromkeys(names, PLANTED), "--verbose", "run", str(file))
    said += darec_search({"PLANTED": PLANTED}, "sync", str(tmp_path / "study"), "--tracking-uri", f"sqlite:///{store}")
    assert "darec-search sync" in said
    assert PLANTED not in said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert store in written
    assert [path for path in written if PLANTED.encode() in path.read_bytes()] == []
    stored = yaml.safe_load((tmp_path / "study" / "study.yaml").read_text())
    assert stored["tracking"]["uri"] == "http://me:${PLANTED}@127.0.0.1:9"


def darec_search(environment: dict[str, str], *arguments: str) -> str:
    """Run the command in a process of its own; returns all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "darec_search", *arguments],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
