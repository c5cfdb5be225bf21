"""The study folder: append-only truth. Everything else about a study is a fold over its files.

study.yaml               resolved config as it ran
environment.json         study id, data fingerprint, DALayers, versions, commit, hardware
trials/<id>/spec.json    what was asked
trials/<id>/result.json  what came back; written once, atomically, by whoever ran it

At a URL it is the same files, and this machine works on a copy: what the controller writes is published at once, what
workers elsewhere have published is fetched. Only the holder of the study's lease writes (`controlling.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from darec_search.config import StudyConfig, explain, read_yaml
from darec_search.identity import check_folder, environment_of, read_environment
from darec_search.lease import Lease
from darec_search.objective import objective_of
from darec_search.shared_folder import SharedFolder
from darec_search.space import SearchSpace
from darec_search.trial import TrialSpec
from darec_search.variants import VARIANTS
from trainer.architecture import Architecture
from trainer.config import RunConfig
from trainer.errors import BadInput
from trainer.storage import is_url, local_path, reached
from trainer.training.result import RunResult, write_atomic

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset


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

    def search_value(self, objective: str) -> float | None:
        """What a finished trial is worth by `search.objective`, else None.

        Raises:
            BadInput: if it finished without that figure, as trials of older versions did.
        """
        if self.objective is None or self.result is None:
            return None
        value = objective_of(objective, self.result.curve or [self.result.metrics])
        if value is None:
            raise BadInput(
                f"search.objective: trial {self.spec.id} in {self.folder} was not judged by {objective}; choose mrr, "
                "or another `output`"
            )
        return value

    def estimate(self, objective: str) -> tuple[float | None, float | None]:
        """What the sampler is told: `search_value`; of a stopped trial what its curve foretold, and how surely."""
        forecast = self.result.forecast if self.result else None
        if forecast is not None and forecast.metric == objective:
            return forecast.value, forecast.stderr
        return self.search_value(objective), None

    @property
    def status(self) -> str:
        """The result's status; `pending` while there is none."""
        return self.result.status if self.result else "pending"


class Study:
    """An open study folder. Make one with `Study.open` or `Study.load`."""

    def __init__(
        self, folder: Path, config: StudyConfig, environment: dict[str, Any], lease: Lease | None = None
    ) -> None:
        self.folder = folder
        self.config = config
        self.environment = environment
        self.lease = lease
        """What the study's controller may write by; without it a study at a URL is only read."""
        self._shared = SharedFolder(config.url) if config.url else None
        self._results: dict[str, RunResult] = {}

    @classmethod
    def open(cls, config: StudyConfig, fingerprint: str, layers: int, lease: Lease | None = None) -> Study:
        """Create the study folder, or go on with it.

        Args:
            config: the study; fields that do not change a trial's outcome may differ from an earlier start's.
            fingerprint: SHA-256 fingerprint of the dataset.
            layers: number of DALayers.
            lease: on the study.

        Raises:
            BadInput: if the folder holds another study, something else, or cannot be written.
            StorageError: if its URL cannot be written.
        """
        folder = config.folder
        check_folder(config, fingerprint, layers)
        environment = environment_of(config, fingerprint, layers)
        try:
            # The environment goes first: it is what tells a study that was killed here from a folder of something else.
            write_atomic(folder / "environment.json", json.dumps(environment, indent=2))
            write_atomic(
                folder / "study.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)
            )
            (folder / "trials").mkdir(exist_ok=True)
        except OSError as error:
            raise BadInput(f"{folder}: the study folder cannot be written ({error.strerror})") from error
        study = cls(folder, config, environment, lease)
        study.publish("environment.json", "study.yaml")
        return study

    @classmethod
    def load(cls, location: Path | str) -> Study:
        """Open an existing study folder without changing it; of one at a URL, this machine's copy as of now.

        Raises:
            BadInput: if it is none, cannot be read, or its files are damaged.
        """
        folder = local_path(location)
        if is_url(location):
            shared = SharedFolder(str(location))
            folder = shared.folder
            with reached():
                shared.pull()
        missing = [name for name in ("study.yaml", "environment.json") if not (folder / name).exists()]
        if missing:
            raise BadInput(f"{location}: is no study folder ({' and '.join(missing)} missing)")
        try:
            # The folder may have been moved or mounted elsewhere since it was written.
            config = StudyConfig.model_validate({**read_yaml(folder / "study.yaml"), "output": str(location)})
        except ValidationError as error:
            raise BadInput(explain(error, str(folder / "study.yaml"))) from error
        return cls(folder, config, read_environment(folder))

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

    def dataset(self) -> Dataset:
        """The study's dataset.

        Raises:
            BadInput: if it cannot be opened, or is no longer the one that the study searched on.
        """
        from trainer.data.dataset import Dataset  # PyArrow; most uses of a study folder need no data

        dataset = Dataset.open(self.config.data.path)
        if dataset.fingerprint != self.fingerprint:
            raise BadInput(
                f"{dataset.location}: is not the dataset of {self.config.location} (fingerprint "
                f"{dataset.fingerprint[:12]}, the study's is {self.fingerprint[:12]}); prepare it again as it was"
            )
        return dataset

    def url(self, name: str) -> str | None:
        """URL of a file or folder of the study, if it is on shared storage."""
        return f"{self.config.url}/{name}" if self.config.url else None

    def write(self, name: str, text: str) -> Path:
        """Write a file of the study, whole or not at all, and publish it.

        Raises:
            LeaseLost: if another controller has taken over.
            StorageError: if the URL cannot be written.
        """
        self.confirm()
        write_atomic(self.folder / name, text)
        self.publish(name)
        return self.folder / name

    def publish(self, *names: str) -> None:
        """Copy files and folders of the study to its URL, if it has one and this process is the controller.

        Raises:
            LeaseLost, StorageError: as `write`.
        """
        self.confirm()
        if self._shared is not None and self.lease is not None:
            self._shared.publish(*names)

    def fetch(self, name: str) -> None:
        """See that a file or folder is here, if another machine has published it.

        Raises:
            StorageError: if the URL cannot be read.
        """
        if self._shared is not None:
            self._shared.pull(name)

    def discard(self, *names: str) -> None:
        """Remove files and folders, at the URL too.

        Raises:
            LeaseLost, StorageError: as `write`.
        """
        self.confirm()
        for name in names:
            if self._shared is not None and self.lease is not None:
                self._shared.remove(name)
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def confirm(self) -> None:
        """Go on only if this process may still write.

        Raises:
            LeaseLost: if another controller has taken over.
        """
        if self.lease is not None:
            self.lease.confirm()

    def trial_folder(self, trial_id: str) -> Path:
        """Folder of a trial: spec, result, curve, checkpoint."""
        return self.folder / "trials" / trial_id

    def request(self, spec: TrialSpec) -> Trial:
        """Record that a trial is wanted. Asked twice, found twice: an existing spec is returned as it stands."""
        if not (self.trial_folder(spec.id) / "spec.json").exists():
            self.write(f"trials/{spec.id}/spec.json", spec.model_dump_json(indent=2))
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
        if spec.id != trial_id:
            raise BadInput(f"{folder / 'spec.json'}: belongs to trial {spec.id}; remove the folder {folder}")
        return Trial(spec, self._result(trial_id), folder)

    def trials(self) -> list[Trial]:
        """All trials by number. A folder without a spec (a crash before it was written) is none."""
        found = (self.trial(file.parent.name) for file in (self.folder / "trials").glob("*/spec.json"))
        return sorted(found, key=lambda trial: (trial.spec.number, trial.spec.id))

    def final_result(self) -> RunResult | None:
        """The result of the final run on all users; None while there is none."""
        try:
            return RunResult.model_validate_json((self.folder / "final" / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None

    def run_config(self, spec: TrialSpec) -> RunConfig:
        """The training run that a spec asks for."""
        run = self.config.run_config(
            Architecture(spec.bits).text,
            spec.weights,
            spec.seed,
            users_fraction=spec.fidelity.users_fraction,
            epochs=spec.fidelity.epochs,
        )
        return VARIANTS[spec.variant](run) if spec.variant else run

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


def best_trial(trials: Iterable[Trial], objective: str = "mrr") -> Trial | None:
    """The finished trial of the searched model with the highest objective (the luckiest, not a recommendation)."""
    values = [(trial.search_value(objective), trial) for trial in trials if not trial.spec.variant]
    finished = [(value, -trial.spec.number, trial) for value, trial in values if value is not None]
    return max(finished, key=lambda entry: entry[:2])[2] if finished else None
