"""What a tracker is to hold of one run, whatever tracker it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["running", "finished", "failed", "killed"]
PARENT = "study"
"""Key of the record under which all others of a tracker stand."""


@dataclass(frozen=True)
class Measurement:
    """Metrics at one optimiser step (of the parent: after one more trial). `at` is in Unix seconds."""

    step: int
    at: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class DataUse:
    """A dataset that a run read.

    Args:
        name: its folder's name; the test split has a name of its own.
        context: `search` (a part of the users), `full` or `test`.
        source: where it lies.
        profile: its fingerprint, and its size where the folder is at hand.
    """

    name: str
    context: Literal["search", "full", "test"]
    source: str
    profile: Mapping[str, object]


@dataclass(frozen=True)
class Record:
    """One run of a tracker.

    Args:
        key: `PARENT`, a trial's id, `final`, a reference's name, or the place of a training in its folder.
        name: what a person reads.
        state: where the run stands.
        started_at: Unix seconds.
        ended_at: Unix seconds; None while it runs.
        params: what was asked, as far as siblings differ in it.
        tags: where it comes from and what became of it.
        note: a description in Markdown.
        rows: metrics by step, by the metric that every row of the series has; rows are only ever added.
        summary: metrics of the run as a whole.
        data: what it read.
        artifacts: file contents, or files, by the path that they get in the run.
        over: it will never change.
    """

    key: str
    name: str
    state: State
    started_at: float
    ended_at: float | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    note: str = ""
    rows: Mapping[str, Sequence[Measurement]] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    data: Sequence[DataUse] = ()
    artifacts: Mapping[str, str | Path] = field(default_factory=dict)
    over: bool = False

    def artifacts_digest(self) -> str:
        """Changes when an artifact's content does."""
        digest = hashlib.sha256()
        for name, content in sorted(self.artifacts.items()):
            data = content.read_bytes() if isinstance(content, Path) else content.encode()
            digest.update(f"{name}:{len(data)}:".encode() + data)
        return digest.hexdigest()[:16]

    def digest(self, artifacts: str) -> str:
        """Changes when anything does that a tracker would show, given the digest of the artifacts."""
        rows = {series: len(found) for series, found in self.rows.items()}
        uses = [(use.name, use.context) for use in self.data]
        key = [self.name, self.state, self.ended_at, self.params, self.tags, self.note, rows, self.summary, uses]
        return hashlib.sha256(json.dumps([*key, artifacts], sort_keys=True, default=dict).encode()).hexdigest()[:16]
