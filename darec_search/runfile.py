"""Run files: one training, or several that differ in a few fields, each with several seeds.

A run file holds the fields of a `RunConfig` and, beside them, whatever of these it needs:

data.prepare  makes the dataset folder when it is absent, as in a study file
runs          name → the fields in which this run differs from the rest of the file: `section.field: value`, or sections
seeds         every run is trained with each of them; the run's own `seed` when absent
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from darec_search.card import architecture_text
from darec_search.config import (
    PrepareConfig,
    StudyConfig,
    apply_overrides,
    in_one_text,
    problem_lines,
    read_yaml,
)
from trainer.config import RunConfig, Section
from trainer.errors import BadInput

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class SweepConfig(Section):
    """What a run file holds beside the fields of a run."""

    runs: dict[Annotated[str, Field(pattern=_NAME)], dict[str, Any]] | None = Field(
        None, min_length=1, description="The runs by name: the fields in which each differs from the rest of the file."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="Seeds that every run is trained with."
    )

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("each seed once")
        return seeds


@dataclass(frozen=True)
class Run:
    """One run of a file, whatever its seed."""

    config: RunConfig
    prepare: PrepareConfig | None
    seeds: tuple[int, ...]

    def seeded(self) -> dict[int, RunConfig]:
        """The trainings by seed."""
        return {seed: self.config.model_copy(update={"seed": seed}) for seed in self.seeds}


@dataclass(frozen=True)
class RunFile:
    """A run file that is valid by itself."""

    path: Path
    runs: dict[str, Run]
    """In the file's order."""
    sweep: bool
    """Whether it names `runs` or `seeds`; without them it is a single training."""

    def only(self, names: Sequence[str]) -> RunFile:
        """The runs of these names.

        Raises:
            BadInput: if one is unknown.
        """
        unknown = [name for name in names if name not in self.runs]
        if unknown:
            raise BadInput(f"{self.path}: has no run {unknown[0]!r}; its runs are {', '.join(self.runs)}")
        return RunFile(self.path, {name: run for name, run in self.runs.items() if name in names}, self.sweep)


def is_run_file(document: Mapping[str, Any]) -> bool:
    """Tell a run file from a study file: only a study has a name, a search, resources, tracking and a promotion."""
    return not document.keys() & (StudyConfig.model_fields.keys() - RunConfig.model_fields.keys())


def load_run_file(path: Path, overrides: Sequence[str] = ()) -> RunFile:
    """Read, override and validate a run file. Overrides change what the runs share; what a run names itself stays.

    Raises:
        BadInput: with every problem of every run at once.
    """
    return parse_run_file(apply_overrides(read_yaml(path), overrides), path)


def parse_run_file(document: Mapping[str, Any], path: Path) -> RunFile:
    """The same for a document that is read already.

    Raises:
        BadInput: with every problem of every run at once.
    """
    base = {name: value for name, value in document.items() if name not in SweepConfig.model_fields}
    try:
        sweep = SweepConfig.model_validate({name: value for name, value in document.items() if name not in base})
    except ValidationError as error:
        raise BadInput(in_one_text(problem_lines(error), str(path))) from error
    changes = {path.stem: {}} if sweep.runs is None else sweep.runs
    runs: dict[str, Run] = {}
    problems: defaultdict[str, list[str]] = defaultdict(list)
    for name, changed in changes.items():
        try:
            runs[name] = _run(merged(base, changed), sweep.seeds)
        except _Problems as found:
            for line in found.lines:
                problems[line].append(name)
    if problems:
        raise BadInput(in_one_text(list(_told(problems, len(changes))), str(path)))
    return RunFile(path, runs, sweep.runs is not None or sweep.seeds is not None)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A document with some fields changed; keys are field names or dotted paths, sections are merged.

    Raises:
        _Problems: if a path leads through a value that is no section.
    """
    document = copy.deepcopy(dict(base))
    for key, value in changes.items():
        *sections, name = key.split(".")
        target = document
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise _Problems([f"{key}: {section!r} is a value, not a section"])
        old = target.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            target[name] = merged(old, value)
        else:
            target[name] = copy.deepcopy(value)
    return document


class _Problems(ValueError):  # noqa: N818
    """Problems of one run, one a line."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(*lines)
        self.lines = lines


def _run(document: dict[str, Any], seeds: tuple[int, ...] | None) -> Run:
    lines: list[str] = []
    prepare = None
    data = document.get("data")
    recipe = data.pop("prepare", None) if isinstance(data, dict) else None
    if recipe is not None:
        try:
            prepare = PrepareConfig.model_validate(recipe)
        except ValidationError as error:
            lines += problem_lines(error, "data.prepare")
    try:
        config = RunConfig.model_validate(document)
        model = config.model.model_copy(update={"architecture": architecture_text(config.model.architecture)})
        config = config.model_copy(update={"model": model})
    except ValidationError as error:
        raise _Problems(lines + problem_lines(error)) from error
    except BadInput as error:
        raise _Problems([*lines, f"model.architecture: {error}"]) from error
    if lines:
        raise _Problems(lines)
    return Run(config, prepare, seeds or (config.seed,))


def _told(problems: Mapping[str, list[str]], runs: int) -> list[str]:
    """Lines with the runs that they concern; what concerns all of them is told once and without a name."""
    return [
        line if len(names) == runs else f"runs.{name}.{line}"
        for line, names in problems.items()
        for name in (names[:1] if len(names) == runs else names)
    ]
