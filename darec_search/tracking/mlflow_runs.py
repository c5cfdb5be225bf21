"""Runs of MLflow that are kept as records say.

Every write is idempotent. Runs are found by the tags `darec.study` and `darec.trial`; a parameter or a step that MLflow
has already is never written again; `darec.digest` says what a run holds, so a run that is up to date costs nothing.
Only explicit run ids are used, no global state of MLflow.
"""

from __future__ import annotations

import fcntl
import getpass
import itertools
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

# MLflow's own defaults wait four minutes for a server that is down, and print a line for every run that ends. Whoever
# has set one of these keeps it. They are read at each request.
for _name, _value in (
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "15"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
):
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - after its environment
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType  # noqa: E402

from darec_search.credentials import redact, resolve  # noqa: E402
from darec_search.tracking.base import Synced  # noqa: E402
from darec_search.tracking.record import PARENT, DataUse, Measurement, Record  # noqa: E402
from trainer.errors import BadInput  # noqa: E402

_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS, _PAGE = 1000, 100, 100, 1000  # the REST API's limits
_MAX_VALUE = 5000  # characters of a tag or parameter
_MAX_DIGEST = 36  # characters of a dataset's digest
_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_SCHEMA = json.dumps(
    {"mlflow_colspec": [{"name": name, "type": "string", "required": True} for name in ("user", "item")]}
)
"""Of an interaction, as MLflow's page on a dataset shows it."""

# MLflow announces every table of a new SQLite file and every model, and urllib3 every retry; the mirror says it once.
for _name in ("mlflow.store.db.utils", "mlflow.pyfunc"):
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").addFilter(lambda entry: "/mlflow/" not in entry.getMessage())


@dataclass
class Mirrored:
    """What MLflow is known to hold of one run."""

    run_id: str
    artifact_uri: str
    params: set[str]
    tags: dict[str, str]
    metrics: dict[str, float]
    status: str
    steps: dict[str, set[int]] = field(default_factory=dict)  # by series; one that is missing was not asked yet

    @classmethod
    def of(cls, run: Run) -> Mirrored:
        data = run.data
        return cls(
            run.info.run_id, run.info.artifact_uri, set(data.params), dict(data.tags), dict(data.metrics),
            run.info.status,
        )  # fmt: skip


class MlflowRuns:
    """The runs of a study, or of a folder of trainings.

    Args:
        uri: tracking URI, in which `${NAME}` is an environment variable.
        experiment: its name.
        group: the tag `darec.study` of these runs.
        folder: where what they show lies.
        tags: makes the experiment's tags.
    """

    def __init__(
        self, uri: str, experiment: str, group: str, folder: Path, tags: Callable[[], Mapping[str, str]]
    ) -> None:
        self._uri, self._name, self._group, self._folder, self._experiment_tags = uri, experiment, group, folder, tags
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._runs: dict[str, Mirrored] = {}
        self._ended: set[str] = set()
        self._created = self._updated = 0

    @property
    def location(self) -> str:
        """The tracking URI without passwords."""
        return redact(self._uri)

    def sync(
        self,
        find: Callable[[Container[str]], Iterable[Record]],
        register: Callable[[MlflowClient, Mapping[str, Mirrored]], str | None] | None = None,
    ) -> Synced:
        """Bring MLflow up to date.

        Args:
            find: the records, the parent first; is given the keys of those that were over before.
            register: makes a registered model of what is there now, and says which.

        Raises:
            BadInput: if MLflow cannot be reached at the URI.
            MlflowException: if it fails in the middle of the work; a later sync goes on from there.
        """
        self._created = self._updated = 0
        try:
            # Nothing makes create_run unique: two syncs of one folder at once would make every run twice.
            with alone(self._folder):
                client = self._client or self._connect()
                self._mirror(client, find(self._ended))
                model = None if register is None else register(client, self._runs)
        except BaseException:
            # What was written is uncertain now, so ask again next time.
            self._client, self._runs, self._ended = None, {}, set()
            raise
        return Synced(len(self._runs), self._created, self._updated, self.location, model)

    def _connect(self) -> MlflowClient:
        uri = resolve(self._uri, "tracking.uri")
        try:
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            self._experiment = _experiment(client, self._name, _artifact_location(uri))
            _tag_experiment(client, self._experiment, self._experiment_tags())
            self._runs = self._known_runs(client)
        except Exception as error:
            text = f"{self.location}: MLflow cannot be reached or does not accept this URI ({reason(error)})"
            raise BadInput(text) from error
        self._client = client
        return client

    def _known_runs(self, client: MlflowClient) -> dict[str, Mirrored]:
        known: dict[str, Mirrored] = {}
        token = None
        while True:
            page = client.search_runs(
                [self._experiment],
                f"tags.`darec.study` = '{self._group}'",
                ViewType.ACTIVE_ONLY,
                _PAGE,
                ["attributes.start_time ASC"],
                token,
            )
            for run in page:
                known.setdefault(run.data.tags.get("darec.trial", ""), Mirrored.of(run))
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
        digest = f"{artifacts}/{record.digest(artifacts)}"
        run = self._runs.get(record.key)
        if run is None:
            run = self._runs[record.key] = self._create(client, record)
            self._created += 1
        elif run.tags.get("darec.digest") == digest:
            return
        else:
            self._updated += 1
        if run.tags.get("darec.digest", "").partition("/")[0] != artifacts:
            _upload(client, run.run_id, record.artifacts)
        self._set_status(client, run, record)
        if record.data:
            client.log_inputs(run.run_id, [_dataset_input(use) for use in record.data])
        # The digest goes last: a sync that was cut short is repeated.
        tags = _tags(record) | {"darec.digest": digest}
        self._log(client, run, record, {name: value for name, value in tags.items() if run.tags.get(name) != value})

    def _create(self, client: MlflowClient, record: Record) -> Mirrored:
        tags = _tags(record) | {"darec.trial": record.key, "mlflow.user": _user()}
        if record.key != PARENT:
            tags["mlflow.parentRunId"] = self._runs[PARENT].run_id
        run = client.create_run(self._experiment, _milliseconds(record.started_at), tags, record.name)
        return Mirrored.of(run)

    def _set_status(self, client: MlflowClient, run: Mirrored, record: Record) -> None:
        status = _STATUS[record.state]
        if status == run.status:
            return
        if record.ended_at is None:
            client.update_run(run.run_id, status=status)
        else:
            client.set_terminated(run.run_id, status, _milliseconds(record.ended_at))
        run.status = status

    def _log(self, client: MlflowClient, run: Mirrored, record: Record, tags: Mapping[str, str]) -> None:
        rows = [row for series, found in record.rows.items() for row in self._missing(client, run, series, found)]
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
        for series, found in record.rows.items():
            run.steps[series] |= {row.step for row in found}
        run.params |= set(params)
        run.metrics |= summary
        run.tags |= tags

    def _missing(
        self, client: MlflowClient, run: Mirrored, series: str, rows: Sequence[Measurement]
    ) -> list[Measurement]:
        """The rows of a series whose steps MLflow does not have."""
        if series not in run.steps:
            history = client.get_metric_history(run.run_id, series) if run.metrics else []
            run.steps[series] = {metric.step for metric in history}
        return [row for row in rows if row.step not in run.steps[series]]


def default_uri(folder: Path) -> str:
    """The SQLite store inside a study folder."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store."""
    parts = urlsplit(uri)
    return Path(parts.path.removeprefix("/")).absolute() if parts.scheme.startswith("sqlite") and parts.path else None


def reason(error: Exception) -> str:
    """What the operating system said, where that is known: MLflow wraps it in four layers of text."""
    text = redact(str(error))
    found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)|timed out", text)
    if found:
        return found.group(1) or found.group(0)
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's sync lock; the operating system releases it when a process dies."""
    with (folder / ".sync.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _dataset_input(use: DataUse) -> DatasetInput:
    dataset = Dataset(
        name=use.name,
        digest=str(use.profile["fingerprint"])[:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": use.source}),
        schema=_SCHEMA,
        profile=json.dumps(use.profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", use.context)])


def _artifact_location(uri: str) -> str | None:
    """Beside the SQLite file; MLflow would take the current directory. A server decides for itself."""
    file = sqlite_file(uri)
    if file is None:
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    return (file.parent / "mlartifacts").as_uri()


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name, artifact_location))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _tag_experiment(client: MlflowClient, experiment: str, wanted: Mapping[str, str]) -> None:
    known = client.get_experiment(experiment).tags
    for name, value in wanted.items():
        if known.get(name) != value:
            client.set_experiment_tag(experiment, name, value)


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
    commit = tags.pop("darec.commit", None)  # MLflow has a place of its own for it
    tags |= {"mlflow.source.name": "darec-search", "mlflow.source.type": "JOB", "mlflow.runName": record.name}
    tags |= {"mlflow.note.content": record.note[:_MAX_VALUE]} if record.note else {}
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
