"""The study folder: append-only truth. Everything else about a study is a fold over its files.

study.yaml               resolved config as it ran
environment.json         study id, data fingerprint, DALayers, versions, commit, hardware
trials/<id>/spec.json    what was asked
trials/<id>/result.json  what came back; written once, atomically, by whoever ran it
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from darec_search.config import StudyConfig
from darec_search.space import SearchSpace
from darec_search.trial import TrialSpec
from trainer.architecture import Architecture
from trainer.config import RunConfig
from trainer.errors import BadInput
from trainer.training.result import RunResult, write_atomic

_PACKAGES = ("darec-search", "torch", "ray", "transformers", "botorch", "ax-platform", "optuna", "mlflow")


@dataclass(frozen=True)
class Trial:
    """One trial as its folder tells it."""

    spec: TrialSpec
    result: RunResult | None
    folder: Path

    @property
    def objective(self) -> float | None:
        """Validation MRR of a finished trial, else None."""
        return self.result.objective if self.result else None

    @property
    def status(self) -> str:
        """The result's status; `pending` while there is none."""
        return self.result.status if self.result else "pending"


class Study:
    """An open study folder. Make one with `Study.open` or `Study.load`."""

    def __init__(self, folder: Path, config: StudyConfig, environment: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.environment = environment
        self._results: dict[str, RunResult] = {}

    @classmethod
    def open(cls, config: StudyConfig, fingerprint: str, layers: int) -> Study:
        """Create the study folder, or go on with it.

        Args:
            config: the study; fields that do not change a trial's outcome may differ from an earlier start's.
            fingerprint: SHA-256 fingerprint of the dataset.
            layers: number of DALayers.

        Raises:
            BadInput: if the folder holds another study, something else, or cannot be written.
        """
        folder = config.folder
        identity = _identity(config, fingerprint, layers)
        environment_file = folder / "environment.json"
        if environment_file.exists():
            _refuse_another(folder, _read_json(environment_file).get("identity", {}), identity)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder}: is not empty and holds no study; choose another `output`")
        environment = {
            "study": _digest(identity),
            "fingerprint": fingerprint,
            "layers": layers,
            "identity": identity,
            **_surroundings(),
        }
        try:
            (folder / "trials").mkdir(parents=True, exist_ok=True)
            write_atomic(
                folder / "study.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)
            )
            write_atomic(environment_file, json.dumps(environment, indent=2))
        except OSError as error:
            raise BadInput(f"{folder}: the study folder cannot be written ({error.strerror})") from error
        return cls(folder, config, environment)

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Open an existing study folder without changing it.

        Raises:
            BadInput: if it is none.
        """
        if not (folder / "environment.json").exists() or not (folder / "study.yaml").exists():
            raise BadInput(f"{folder}: is no study folder (study.yaml and environment.json are missing)")
        document = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
        try:
            # The folder may have been moved or mounted elsewhere since it was written.
            config = StudyConfig.model_validate({**document, "output": str(folder)})
        except ValidationError as error:
            raise BadInput(f"{folder / 'study.yaml'}: was written by an incompatible version ({error})") from error
        return cls(folder, config, _read_json(folder / "environment.json"))

    @property
    def id(self) -> str:
        """Hash of everything that changes a trial's outcome beside its spec."""
        return str(self.environment["study"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 fingerprint of the dataset."""
        return str(self.environment["fingerprint"])

    @cached_property
    def space(self) -> SearchSpace:
        """Bits of every DALayer × the λ levels of the config."""
        return SearchSpace(int(self.environment["layers"]), weights=self.config.search.weights.searched())

    def trial_folder(self, trial_id: str) -> Path:
        """Folder of a trial: spec, result, curve, checkpoint."""
        return self.folder / "trials" / trial_id

    def request(self, spec: TrialSpec) -> Trial:
        """Record that a trial is wanted. Asked twice, found twice: an existing spec is returned as it stands."""
        file = self.trial_folder(spec.id) / "spec.json"
        if not file.exists():
            write_atomic(file, spec.model_dump_json(indent=2))
        return self.trial(spec.id)

    def trial(self, trial_id: str) -> Trial:
        """One trial.

        Raises:
            BadInput: if its spec cannot be read.
        """
        folder = self.trial_folder(trial_id)
        try:
            spec = TrialSpec.model_validate_json((folder / "spec.json").read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise BadInput(f"{folder / 'spec.json'}: is no readable trial; remove the folder {folder}") from error
        return Trial(spec, self._result(trial_id), folder)

    def trials(self) -> list[Trial]:
        """All trials by number. A folder without a spec (a crash before it was written) is none."""
        found = (self.trial(file.parent.name) for file in (self.folder / "trials").glob("*/spec.json"))
        return sorted(found, key=lambda trial: (trial.spec.number, trial.spec.id))

    def run_config(self, spec: TrialSpec) -> RunConfig:
        """The training run that a spec asks for."""
        return self.config.run_config(
            Architecture(spec.bits).text,
            spec.weights,
            spec.seed,
            users_fraction=spec.fidelity.users_fraction,
            epochs=spec.fidelity.epochs,
        )

    def _result(self, trial_id: str) -> RunResult | None:
        if trial_id in self._results:
            return self._results[trial_id]
        file = self.trial_folder(trial_id) / "result.json"
        try:
            result = RunResult.model_validate_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValidationError:
            # Writing is atomic, so this file is not ours to trust: keep it aside and run the trial again.
            file.rename(file.with_suffix(".unreadable"))
            return None
        self._results[trial_id] = result
        return result


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """The finished trial with the highest objective (the luckiest draw, not a recommendation)."""
    finished = [trial for trial in trials if trial.objective is not None]
    return max(finished, key=lambda trial: (trial.objective or 0.0, -trial.spec.number), default=None)


def _identity(config: StudyConfig, fingerprint: str, layers: int) -> dict[str, Any]:
    dumped = config.model_dump(mode="json")
    model = {name: value for name, value in dumped["model"].items() if name != "architecture"}
    data = {name: dumped["data"][name] for name in ("max_items", "max_item_tokens")}
    return {
        "fingerprint": fingerprint,
        "layers": layers,
        "seed": config.seed,
        "data": data,
        "model": model,
        "losses": dumped["losses"],
        "negatives": dumped["negatives"],
        "optimization": {name: value for name, value in dumped["optimization"].items() if name != "epochs"},
        "precision": config.precision,
    }


def _refuse_another(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    differing = sorted(name for name, value in _leaves(new) if dict(_leaves(old)).get(name) != value)
    if differing:
        raise BadInput(
            f"{folder}: belongs to another study (it differs in {', '.join(differing)}); "
            "choose another `output`, or give those fields their old values to go on with it"
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise BadInput(f"{file}: cannot be read as JSON; restore it or choose another `output`") from error
    if not isinstance(document, dict):
        raise BadInput(f"{file}: must hold a JSON object")
    return document


def _surroundings() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that this code runs from; None for an installed package or without git."""
    here = Path(__file__).resolve().parent
    try:
        output = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return output.stdout.strip() or None
