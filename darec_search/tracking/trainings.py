"""What a folder of trainings says, as records: what `train` or `reproduce` leaves, also while they are at work.

The folder is a parent; each training below it is a child, named by its place, and so is each reference that was
measured there. A single training in the folder itself is a record without children. Parameters are the fields in which
the trainings differ from each other, so that a table of them shows what there is to compare.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from darec_search.tracking.record import PARENT, DataUse, Record
from darec_search.tracking.traces import begun, read_json, read_result
from darec_search.tracking.training_record import Origin, data_use, test_metrics, text, training_record
from trainer.config import RunConfig
from trainer.training.result import write_atomic

_ID = "tracking.json"
_SHOWN = ("*.json", "*.md", "*.png", "figures/*.png")
"""What belongs to the parent."""
_OF_ALL = ("seed", "cache", "execution")
"""Fields that have a parameter of their own, or change nothing of what is trained."""
_SAID = ("model.architecture", "data.users_fraction", "optimization.epochs")
"""Fields of sections that have a parameter of their own."""
_OF_BASELINES = ("baseline.options", "data", "optimization")
"""Where the fields begin that mean something to a baseline; a whole DARec may stand beside it in the same file."""


@dataclass(frozen=True)
class Trainings:
    """A folder that holds trainings: in itself, or below it.

    Args:
        folder: the folder.
    """

    folder: Path

    @property
    def location(self) -> str:
        """Where it is."""
        return str(self.folder)

    @property
    def id(self) -> str:
        """What its runs are found by; made at the first call, and kept in the folder."""
        file = self.folder / _ID
        found = read_json(file)
        if not isinstance(found, dict) or "id" not in found:
            found = {"id": uuid.uuid4().hex[:16]}
            write_atomic(file, json.dumps(found))
        return str(found["id"])

    def configs(self) -> dict[str, RunConfig]:
        """The trainings that have begun, by their place below the folder; `.` is the folder itself."""
        return dict(_configs(self.folder))


def training_records(trainings: Trainings, live: bool) -> list[Record]:
    """The parent first, then every training that has begun, and the references.

    Args:
        trainings: the folder.
        live: somebody is at work on it, so a training without a result is running, and not stopped.
    """
    configs, origin = trainings.configs(), Origin(trainings.id)
    folder = trainings.folder
    differing = _differing(configs)
    if "." in configs:
        record = _record(origin, PARENT, folder.name, folder, live, configs["."], {})
        return [record] if record else []
    children = [
        record
        for place, config in configs.items()
        if (record := _record(origin, place, place, folder / place, live, config, differing[place]))
    ]
    started = min((child.started_at for child in children), default=(folder / _ID).stat().st_mtime)
    references = [
        Record(
            key=place,
            name=place,
            state="finished",
            started_at=started,
            ended_at=started,
            params={"method": Path(place).name},
            tags={"study": origin.id, "status": "finished"},
            note="Needs no training: what a model has to beat to be worth its cost.",
            summary=test_metrics(read_json(folder / place / "metrics.json")),
        )
        for place in _references(folder, configs)
    ]
    ended = max((child.ended_at or started for child in children), default=started)
    files = {str(file.relative_to(folder)): file for pattern in _SHOWN for file in sorted(folder.glob(pattern))}
    parent = Record(
        key=PARENT,
        name=folder.name,
        state="running" if live else "finished" if all(c.state == "finished" for c in children) else "killed",
        started_at=started,
        ended_at=None if live else ended,
        params={},
        tags={"study": origin.id, "trainings": str(len(children))},
        artifacts={name: file for name, file in files.items() if file.name != _ID},
    )
    return [parent, *children, *references]


def _record(
    origin: Origin, key: str, name: str, folder: Path, live: bool, config: RunConfig, differing: Mapping[str, Any]
) -> Record | None:
    result = read_result(folder)
    if result is None and not begun(folder):
        return None
    tested = read_json(folder / "metrics.json")
    uses: list[DataUse] = []
    if result is not None and result.fingerprint:
        uses.append(data_use(result.fingerprint, config, "search" if config.data.users_fraction < 1 else "full"))
        uses += [data_use(result.fingerprint, config, "test")] if tested else []
    files = ("run.json", "metrics.json", "validation.json")
    design = {} if config.baseline is not None else {"architecture": config.model.architecture}
    return training_record(
        origin,
        key,
        name,
        folder,
        live,
        config,
        result,
        params={
            "method": "darec" if config.baseline is None else config.baseline.name,
            **design,
            **{field: text(value) for field, value in differing.items()},
        },
        note=f"Ended as {result.status}: {result.reason}" if result is not None and result.reason else "",
        summary=test_metrics(tested),
        data=uses,
        artifacts={file: folder / file for file in files if (folder / file).is_file()},
    )


def _files(folder: Path, name: str) -> list[Path]:
    """All of that name, but for the copies that MLflow keeps where its store is in the folder itself."""
    return [file for file in sorted(folder.rglob(name)) if "mlartifacts" not in file.relative_to(folder).parts]


def _configs(folder: Path) -> Iterator[tuple[str, RunConfig]]:
    for file in _files(folder, "run.json"):
        try:
            yield str(file.parent.relative_to(folder)), RunConfig.model_validate_json(file.read_text(encoding="utf-8"))
        except (ValidationError, FileNotFoundError):
            continue  # another version's, or just being replaced


def _references(folder: Path, configs: Mapping[str, RunConfig]) -> list[str]:
    """Places of what was measured without having been trained."""
    places = (str(file.parent.relative_to(folder)) for file in _files(folder, "metrics.json"))
    return [place for place in places if place not in configs and place != "."]


def _differing(configs: Mapping[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """By place, the fields that have not the same value in all trainings."""
    flat = {place: _flat(config.model_dump(mode="json", exclude=set(_OF_ALL))) for place, config in configs.items()}
    fields = dict.fromkeys(field for document in flat.values() for field in document)
    several = [
        field
        for field in fields
        if field not in _SAID and len({text(document.get(field)) for document in flat.values()}) > 1
    ]
    return {
        place: {
            field: document[field]
            for field in several
            if field in document and (configs[place].baseline is None or field.startswith(_OF_BASELINES))
        }
        for place, document in flat.items()
    }


def _flat(document: Mapping[str, Any], before: Sequence[str] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            found |= _flat(value, (*before, name))
        elif value is not None:
            found[".".join((*before, name))] = value
    return found
