"""MLflow as a window onto a study folder: a parent run a study, a child a trial, the final run, the champion.

Every write is idempotent. Runs are found by the tags `darec.study` and `darec.trial`; a parameter or a step that MLflow
has already is never written again; `darec.digest` says what a run holds, so a run that is up to date costs nothing.
Only explicit run ids are used, no global state of MLflow.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# MLflow's own defaults wait four minutes for a server that is down, and print a line for every run that ends. Whoever
# has set one of these keeps it. They are read at each request.
for _name, _value in (
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "15"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
):
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - after its environment
from mlflow.entities import Metric, Param, Run, RunTag, ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from darec_search.credentials import redact, resolve  # noqa: E402
from darec_search.study import Study  # noqa: E402
from darec_search.tracking.base import Synced  # noqa: E402
from darec_search.tracking.records import FINAL, STUDY, Measurement, Record, records  # noqa: E402
from trainer.errors import BadInput  # noqa: E402

_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS, _PAGE = 1000, 100, 100, 1000  # the REST API's limits
_MAX_VALUE = 5000  # characters of a tag or parameter
_MARKER = "elapsed_s"  # stands in every row, so its history tells which steps MLflow has
_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
CHAMPION = "champion"

# MLflow announces every table of a new SQLite file, and urllib3 every retry, on the terminal; the mirror says it once.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").addFilter(lambda entry: "/mlflow/" not in entry.getMessage())


@dataclass
class _Mirrored:
    """What MLflow is known to hold of one run."""

    run_id: str
    artifact_uri: str
    params: set[str]
    tags: dict[str, str]
    metrics: dict[str, float]
    status: str
    steps: set[int] | None  # None: not asked yet

    @classmethod
    def of(cls, run: Run, steps: set[int] | None = None) -> _Mirrored:
        data = run.data
        return cls(
            run.info.run_id, run.info.artifact_uri, set(data.params), dict(data.tags), dict(data.metrics),
            run.info.status, steps,
        )  # fmt: skip


class MlflowTracker:
    """The `Tracker` for MLflow.

    Args:
        study: the study to show.
        uri: tracking URI, in which `${NAME}` is an environment variable; when None the config's, or `mlflow.db` inside
            the study folder.
    """

    def __init__(self, study: Study, uri: str | None = None) -> None:
        self._study = study
        self._uri = uri or study.config.tracking.uri or default_uri(study.folder)
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._runs: dict[str, _Mirrored] = {}
        self._ended: set[str] = set()
        self._created = self._updated = 0

    @property
    def location(self) -> str:
        """The tracking URI without passwords."""
        return redact(self._uri)

    def sync(self, live: bool = False) -> Synced:
        """Bring MLflow up to date with the study folder.

        Args:
            live: a search is at work on the folder.

        Raises:
            BadInput: if MLflow cannot be reached at the URI.
            MlflowException: if it fails in the middle of the work; a later sync goes on from there.
        """
        self._created = self._updated = 0
        try:
            # Nothing makes create_run unique: two syncs of one folder at once would make every run twice.
            with _alone(self._study.folder):
                client = self._client or self._connect()
                self._mirror(client, records(self._study, live, self._ended))
                model = self._register(client)
        except BaseException:
            # What was written is uncertain now, so ask again next time.
            self._client, self._runs, self._ended = None, {}, set()
            raise
        return Synced(len(self._runs), self._created, self._updated, self.location, model)

    def _connect(self) -> MlflowClient:
        uri = resolve(self._uri, "tracking.uri")
        try:
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            name = self._study.config.tracking.experiment or self._study.config.name
            self._experiment = _experiment(client, name, _artifact_location(uri))
            self._runs = self._known_runs(client)
        except Exception as error:
            text = f"{self.location}: MLflow cannot be reached or does not accept this URI ({_reason(error)})"
            raise BadInput(text) from error
        self._client = client
        return client

    def _known_runs(self, client: MlflowClient) -> dict[str, _Mirrored]:
        known: dict[str, _Mirrored] = {}
        token = None
        while True:
            page = client.search_runs(
                [self._experiment],
                f"tags.`darec.study` = '{self._study.id}'",
                ViewType.ACTIVE_ONLY,
                _PAGE,
                ["attributes.start_time ASC"],
                token,
            )
            for run in page:
                known.setdefault(run.data.tags.get("darec.trial", ""), _Mirrored.of(run))
            token = page.token
            if not token:
                return known

    def _mirror(self, client: MlflowClient, found: Iterable[Record]) -> None:
        for record in found:
            self._upsert(client, record)
            if record.over:
                self._ended.add(record.key)

    def _upsert(self, client: MlflowClient, record: Record) -> None:
        artifacts = record.artifacts_digest()
        digest = record.digest(artifacts)
        run = self._runs.get(record.key)
        if run is None:
            run = self._runs[record.key] = self._create(client, record)
            self._created += 1
        elif run.tags.get("darec.digest") == digest:
            return
        else:
            self._updated += 1
        if run.tags.get("darec.artifacts") != artifacts:
            _upload(client, run.run_id, record.artifacts)
        self._set_status(client, run, record)
        # The digest goes last: a sync that was cut short is repeated.
        tags = _tags(record) | {"darec.artifacts": artifacts, "darec.digest": digest}
        self._log(client, run, record, {name: value for name, value in tags.items() if run.tags.get(name) != value})

    def _create(self, client: MlflowClient, record: Record) -> _Mirrored:
        tags = _tags(record) | {"darec.trial": record.key, "mlflow.user": _user()}
        if record.key != STUDY:
            tags["mlflow.parentRunId"] = self._runs[STUDY].run_id
        run = client.create_run(self._experiment, _milliseconds(record.started_at), tags, record.name)
        return _Mirrored.of(run, steps=set())

    def _set_status(self, client: MlflowClient, run: _Mirrored, record: Record) -> None:
        status = _STATUS[record.state]
        if status == run.status:
            return
        if record.ended_at is None:
            client.update_run(run.run_id, status=status)
        else:
            client.set_terminated(run.run_id, status, _milliseconds(record.ended_at))
        run.status = status

    def _log(self, client: MlflowClient, run: _Mirrored, record: Record, tags: Mapping[str, str]) -> None:
        if run.steps is None:
            run.steps = {metric.step for metric in client.get_metric_history(run.run_id, _MARKER)}
        rows = [row for row in record.rows if row.step not in run.steps]
        params = {name: value for name, value in record.params.items() if name not in run.params}
        summary = {name: value for name, value in record.summary.items() if run.metrics.get(name) != value}
        at = record.started_at if record.ended_at is None else record.ended_at
        *before, last = _batches(rows, [Metric(name, value, _milliseconds(at), 0) for name, value in summary.items()])
        for metrics in before:
            client.log_batch(run.run_id, metrics, synchronous=True)
        *more_params, last_params = _chunks([Param(k, v[:_MAX_VALUE]) for k, v in params.items()], _MAX_PARAMS)
        for chunk in more_params:
            client.log_batch(run.run_id, params=chunk, synchronous=True)
        run_tags = [RunTag(name, value) for name, value in tags.items()]
        client.log_batch(run.run_id, last, last_params, run_tags[-_MAX_TAGS:], synchronous=True)
        run.steps |= {row.step for row in rows}
        run.params |= set(params)
        run.metrics |= summary
        run.tags |= tags

    def _register(self, client: MlflowClient) -> str | None:
        """Register best/ once the final run has been measured, and let the alias `champion` point to it."""
        best, run = self._study.folder / "best", self._runs.get(FINAL)
        if run is None or run.status != "FINISHED" or not (best / "architecture.json").exists():
            return None
        name = self._study.config.tracking.registered_model or self._study.config.name
        digest = _folder_digest(best)
        model, _, registered = run.tags.get("darec.model", "").rpartition("@")
        if registered == digest and model.rpartition("/")[0] == name:
            return model
        client.log_artifacts(run.run_id, str(best), "model")
        version = _model_version(client, name, run, {"darec.study": self._study.id, "darec.digest": digest})
        client.set_registered_model_alias(name, CHAMPION, version)
        run.tags["darec.model"] = f"{name}/{version}@{digest}"
        client.set_tag(run.run_id, "darec.model", run.tags["darec.model"], synchronous=True)
        return f"{name}/{version}"


def _reason(error: Exception) -> str:
    """What the operating system said, where that is known: MLflow wraps it in four layers of text."""
    text = redact(str(error))
    found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)|timed out", text)
    if found:
        return found.group(1) or found.group(0)
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def default_uri(folder: Path) -> str:
    """The SQLite store inside a study folder."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def _artifact_location(uri: str) -> str | None:
    """Beside the SQLite file; MLflow would take the current directory. A server decides for itself."""
    parts = urlsplit(uri)
    if not parts.scheme.startswith("sqlite") or not parts.path:
        return None
    folder = Path(parts.path.removeprefix("/")).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "mlartifacts").as_uri()


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name, artifact_location))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _model_version(client: MlflowClient, name: str, run: _Mirrored, tags: Mapping[str, str]) -> str:
    """The version of this run and content; created if there is none."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"run_id = '{run.run_id}'"):
        if version.name == name and version.tags.get("darec.digest") == tags["darec.digest"]:
            return str(version.version)
    source = f"{run.artifact_uri}/model"
    created = client.create_model_version(name, source, run.run_id, dict(tags), await_creation_for=0)
    return str(created.version)


def _upload(client: MlflowClient, run_id: str, artifacts: Mapping[str, str | Path]) -> None:
    """One call for all artifacts, whatever folder each is in."""
    with tempfile.TemporaryDirectory(prefix="darec-search-") as folder:
        for name, content in artifacts.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                file.symlink_to(content.absolute())
            else:
                file.write_text(content, encoding="utf-8")
        client.log_artifacts(run_id, folder)


def _batches(rows: Sequence[Measurement], summary: Sequence[Metric]) -> list[list[Metric]]:
    """Metrics in requests within the limit; a row is never divided, so a step is in MLflow wholly or not at all."""
    batches: list[list[Metric]] = [list(summary)]
    for row in rows:
        metrics = [Metric(name, value, _milliseconds(row.at), row.step) for name, value in row.values.items()]
        if len(batches[-1]) + len(metrics) > _MAX_METRICS:
            batches.append([])
        batches[-1] += metrics
    return batches


def _chunks(params: Sequence[Param], size: int) -> list[list[Param]]:
    """At least one, perhaps empty."""
    iterator: Iterator[Param] = iter(params)
    return list(iter(lambda: list(itertools.islice(iterator, size)), [])) or [[]]


def _tags(record: Record) -> dict[str, str]:
    tags = {f"darec.{name}": value[:_MAX_VALUE] for name, value in record.tags.items()}
    tags |= {"mlflow.source.name": "darec-search", "mlflow.source.type": "JOB", "mlflow.runName": record.name}
    return tags | ({"mlflow.source.git.commit": record.tags["commit"]} if "commit" in record.tags else {})


def _folder_digest(folder: Path) -> str:
    """Of all names and sizes and of the card, which holds the hash of the weights."""
    digest = hashlib.sha256((folder / "architecture.json").read_bytes())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}:{file.stat().st_size};".encode())
    return digest.hexdigest()[:16]


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's sync lock; the operating system releases it when a process dies."""
    with (folder / ".sync.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
