"""A study that a fault befalls: the command that runs it, and what became of its trials."""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from local_cluster import wait_for

from darec_search.study import Study, Trial

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 6


@dataclass
class Row:
    """What became of a study that one kind of fault befell."""

    fault: str
    injected: int
    lost: int
    repeated: int
    recovery_s: list[float]
    seen: str = ""

    @property
    def seconds(self) -> str:
        """Median, and the worst of several."""
        if not self.recovery_s:
            return "–"
        worst = f" (worst {max(self.recovery_s):.1f})" if len(self.recovery_s) > 1 else ""
        return f"{statistics.median(self.recovery_s):.1f}{worst}"


@dataclass
class Common:
    """Data and caches that all studies share, and what may differ between runs of the benchmark."""

    folder: Path
    chance: random.Random
    quick: bool
    kills: int


class Case:
    """A study, the command that runs it, and what its trials had come to whenever one looked.

    Args:
        common: where it lies.
        name: of the study.
        sections: of its file, merged into the tiny study's.
        environment: of the command, added to this process's.
    """

    def __init__(self, common: Common, name: str, environment: dict[str, str] | None = None, **sections: Any) -> None:
        self.home = common.folder / name.replace(" ", "-")
        self.home.mkdir()
        self.study = self.home / "study"
        self.faults = self.home / "faults"
        self.faults.mkdir()
        self.log = self.home / "log"
        document = _document(common.folder, self.study)
        for section, values in sections.items():
            document[section] = {**document.get(section, {}), **values}
        self.trials = document["search"]["trials"]
        (self.home / "study.yaml").write_text(yaml.safe_dump(document))
        paths = [str(ROOT / "benchmarks" / "fault_injection"), str(ROOT)]
        self.environment = {
            **os.environ,
            "DAREC_FAULTS": str(self.faults),
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        self.recovery_s: list[float] = []
        self.injected = 0
        self._written: dict[str, set[tuple[int, str]]] = {}

    def start(self) -> subprocess.Popen[bytes]:
        """`darec-search run`, from the start or wherever it was ended."""
        with self.log.open("a") as log:
            command = [sys.executable, "-m", "darec_search", "run", str(self.home / "study.yaml")]
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, cwd=self.home)

    def finish(self, running: subprocess.Popen[bytes] | None = None) -> None:
        """To the end of the study.

        Raises:
            RuntimeError: if the command fails.
        """
        running = running or self.start()
        wait_for("the end of the study", lambda: self.look() or running.poll() is not None)
        if running.returncode != 0:
            raise RuntimeError(f"exit code {running.returncode}\n{self.log.read_text()[-4000:]}")
        self.look()

    def look(self) -> None:
        """Take down which results are there."""
        for file in self.study.glob("trials/*/result.json"):
            with suppress(FileNotFoundError):
                entry = (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
                self._written.setdefault(file.parent.name, set()).add(entry)

    def results(self) -> int:
        """How many trials have ended."""
        return len(list(self.study.glob("trials/*/result.json")))

    def under_way(self) -> list[Path]:
        """Folders of trials that have been trained for an epoch and have no result."""
        folders = {file.parents[1] for file in self.study.glob("trials/*/checkpoint/epoch-*")}
        return sorted(folder for folder in folders if not (folder / "result.json").exists())

    def sign(self, since: float) -> bool:
        """Whether an epoch or a trial has ended since then, by the file system's clock."""
        files = [*self.study.glob("trials/*/curve.jsonl"), *self.study.glob("trials/*/result.json")]
        times = []
        for file in files:
            with suppress(FileNotFoundError):
                times.append(file.stat().st_mtime)
        return any(at > since for at in times)

    def recovered(self, running: subprocess.Popen[bytes], since: float) -> None:
        """Wait for the next sign of training, and note how long it took."""
        wait_for("training to go on", lambda: self.sign(since) or running.poll() is not None, 0.05)
        if running.poll() is None:
            self.recovery_s.append(time.time() - since)

    def row(self, fault: str, seen: str = "") -> Row:
        """The account, once the study has ended."""
        self.look()
        study = Study.load(self.study)
        there = {trial.spec.id for trial in study.trials() if trial.result}
        searched = [trial for trial in study.trials() if trial.spec.stage == "joint"]
        lost = len(set(self._written) - there) + len([t for t in study.trials() if t.result is None])
        lost += max(0, self.trials - len(searched))
        repeated = sum(len(entries) - 1 for entries in self._written.values())
        return Row(fault, self.injected, lost, repeated, self.recovery_s, seen)

    def ended_as(self, status: str) -> list[Trial]:
        """Trials with that status."""
        return [trial for trial in Study.load(self.study).trials() if trial.status == status]


def _document(shared: Path, study: Path) -> dict[str, Any]:
    """A study of trainings of a second or two."""
    return {
        "name": "faults",
        "output": str(study),
        "cache": str(shared / "cache"),
        "data": {
            "path": str(shared / "data"),
            "prepare": {"format": "synthetic", "options": {"users": 150, "items": 80}},
            "max_items": 10,
        },
        "model": {
            "backbone": {"builtin": {"layers": 2, "hidden": 16, "heads": 2, "vocabulary": 400, "steps": 20}},
            "adapters": {"bottleneck": 8},
            "collaborative": {"dimension": 8},
        },
        "negatives": {"mf_dimension": 8},
        "optimization": {"epochs": EPOCHS, "batch_size": 32, "learning_rate": 1e-3},
        "search": {"sampler": "random", "strategy": "joint", "trials": 8, "weights": {}},
        "promotion": {"candidates": 1, "repeats": 1},
        "resources": {"runner": "local"},
        "tracking": {"enabled": False},
    }
