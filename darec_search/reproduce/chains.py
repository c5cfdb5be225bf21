"""What is to be trained next, told from the results folder alone: so whatever is killed, nothing finished is repeated.

DATASET/search/METHOD/NNN.json    a design of the method's search, written before it is trained
DATASET/search/METHOD/NNN/        its training
DATASET/trainings/METHOD-SEED/    the method as its search found it, on all users, measured on the test split
DATASET/figures/NAME-SEED/        the trainings of figures, where the scale makes them smaller
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from darec_search import samplers
from darec_search.reproduce.methods import Changes, Method
from darec_search.reproduce.setup import Setup, changes_of
from darec_search.samplers.base import Sampler
from darec_search.space import Point, SearchSpace
from darec_search.sweep import MEASURED, Training
from trainer.config import RunConfig
from trainer.data.dataset import Split
from trainer.errors import BadInput
from trainer.training.result import RunResult, write_atomic
from trainer.training.run import open_folder

_SEARCH_SEED = 1000
"""Of a search's trainings: none of the final ones."""
_OWN_FAULT = ("diverged", "out_of_memory")


@dataclass(frozen=True)
class Job:
    """A training to do now.

    Args:
        training: which.
        split: what its model is measured on; None for a trial of a search, whose model is not kept.
    """

    training: Training
    split: Split | None = None

    @property
    def key(self) -> str:
        """Its folder."""
        return str(self.training.folder)


class Search:
    """The search of a method's settings: so many trials on validation MRR, proposed by one of the samplers.

    Args:
        setup: dataset and scale.
        method: whose settings.
        folder: takes its trials.
    """

    def __init__(self, setup: Setup, method: Method, folder: Path) -> None:
        self._setup, self._method, self._folder = setup, method, folder

    @cached_property
    def trials(self) -> int:
        """How many there are: the scale's, or as many as there are designs."""
        return min(self._setup.scale.trials, self._space.size)

    def next(self, running: Collection[str]) -> Job | None:
        """A trial that can begin now."""
        for training in self.begun():
            if str(training.folder) not in running and training.result() is None:
                return Job(training)
        points = self._points()
        if len(points) == self.trials:
            return None
        point = self._propose(points)
        design = {"bits": point.bits, "levels": dict(point.weights), **changes_of(self._method, point)}
        write_atomic(self._file(len(points)), json.dumps(design, indent=2))
        return Job(self._training(len(points), point))

    def begun(self) -> list[Training]:
        """The trials that have a design, in order."""
        return [self._training(number, point) for number, point in enumerate(self._points())]

    @property
    def over(self) -> bool:
        """Whether every trial has ended."""
        return all(self._result(number) is not None for number in range(self.trials))

    def chosen(self) -> dict[str, Any] | None:
        """The fields of the best design; None if no trial finished."""
        sampler = self._told(self._points())
        return changes_of(self._method, sampler.best()) if sampler.history.observations else None

    def extremes(self) -> list[Point]:
        """The designs with the smallest and the largest of the levels that decide how long a training takes."""
        first, last = ({name: of[end] for name, of in self._space.weights.items()} for end in (0, -1))
        bits = (0,) * self._space.bits
        small = Point(bits, first)
        large = Point(bits, last)
        return [small, large] if self._method.kind == "baseline" else [small]

    def document(self) -> dict[str, Any]:
        """What it did, for `results.json`."""
        results = [result for number in range(self.trials) if (result := self._result(number)) is not None]
        scores = [result.objective for result in results if result.objective is not None]
        hours = sum(result.cost.wall_s for result in results) / 3600
        chosen = self.chosen() if scores else None
        return {
            "trials": len(results),
            "chosen": chosen,
            "best_validation_mrr": max(scores, default=None),
            "hours": hours,
        }

    def config(self, point: Point) -> RunConfig:
        """The training of a design."""
        changes = (*self._setup.search_changes(self._method), changes_of(self._method, point))
        return self._setup.config(self._method, *changes, seed=_SEARCH_SEED)

    @cached_property
    def _space(self) -> SearchSpace:
        return self._setup.space(self._method)

    def _propose(self, points: list[Point]) -> Point:
        pending = [point for number, point in enumerate(points) if self._result(number) is None]
        return self._told(points).ask(pending)

    def _told(self, points: list[Point]) -> Sampler:
        scale = self._setup.scale
        sampler = samplers.create(scale.sampler, self._space, 0, **scale.sampler_options)
        for number, point in enumerate(points):
            result = self._result(number)
            if result is not None and result.objective is not None:
                sampler.tell(point, result.objective)
            elif result is not None:
                sampler.tell_failed(point, str(result.reason), by_design=result.status in _OWN_FAULT)
        return sampler

    def _points(self) -> list[Point]:
        found = []
        for number in range(self.trials):
            if not self._file(number).exists():
                break
            design = json.loads(self._file(number).read_text(encoding="utf-8"))
            point = Point(tuple(design["bits"]), design["levels"])
            if point not in self._space:
                raise BadInput(
                    f"{self._file(number)}: is a design of another search space; give another --out, or remove "
                    f"{self._folder}"
                )
            found.append(point)
        return found

    def _training(self, number: int, point: Point) -> Training:
        return Training(f"{self._method.name} trial", number, self.config(point), self._folder / f"{number:03}")

    def _result(self, number: int) -> RunResult | None:
        return _result(self._folder / f"{number:03}")

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:03}.json"


@dataclass(frozen=True)
class Final:
    """A method, or a variant of it, that is trained with every seed once its search is over.

    Args:
        name: of its folders.
        changes: what differs from the method as its search found it.
        place: `trainings` or `figures`.
    """

    name: str
    changes: tuple[Changes, ...] = ()
    place: str = "trainings"


class Chain:
    """One method on one dataset: its search, then its trainings.

    Args:
        setup: dataset and scale.
        method: which.
        folder: of the dataset in the results folder.
        finals: what is trained after the search.
    """

    def __init__(self, setup: Setup, method: Method, folder: Path, finals: Collection[Final]) -> None:
        self.setup, self.method, self.folder = setup, method, folder
        self.finals = list({(final.place, final.name): final for final in finals}.values())
        self.search = Search(setup, method, folder / "search" / method.name)
        self._tried: set[str] = set()
        self._over = False

    @property
    def size(self) -> int:
        """Trainings."""
        return self.search.trials + len(self.finals) * len(self.setup.scale.seeds)

    def verify(self) -> int:
        """Check that its folders hold its own trainings.

        Returns:
            Those that are done.

        Raises:
            BadInput: if one holds another.
        """
        trials = self.search.begun()
        finals = self.trainings if self._searched() else []
        for training in (*trials, *finals):
            if training.folder.exists():
                open_folder(training.config, training.folder)
        ended = sum(training.result() is not None for training in trials)
        return ended + sum(measured(training.folder) for training in finals)

    def ready(self, running: Collection[str]) -> Job | None:
        """A training that can begin now; a final one that failed is tried once in a start."""
        if not self._searched():
            return self.search.next(running)
        for training in self.trainings:
            key = str(training.folder)
            if key not in running and key not in self._tried and not measured(training.folder):
                self._tried.add(key)
                return Job(training, "test")
        return None

    @cached_property
    def trainings(self) -> list[Training]:
        """The final trainings; none if no trial of the search finished. Ask once the search is over."""
        chosen = self.search.chosen()
        if chosen is None:
            return []
        return [
            Training(
                final.name,
                seed,
                self.setup.config(self.method, chosen, *final.changes, seed=seed),
                self.folder / final.place / f"{final.name}-{seed}",
            )
            for final in self.finals
            for seed in self.setup.scale.seeds
        ]

    def complete(self) -> bool:
        """Whether every final training has finished and was measured."""
        return self._searched() and bool(self.trainings) and all(measured(one.folder) for one in self.trainings)

    def _searched(self) -> bool:
        # Results are never taken back, so what is over stays so.
        self._over = self._over or self.search.over
        return self._over


def measured(folder: Path) -> bool:
    """Whether a training has finished and was measured on the test split."""
    result = _result(folder)
    return result is not None and result.status == "finished" and (folder / MEASURED["test"][0]).exists()


def _result(folder: Path) -> RunResult | None:
    file = folder / "result.json"
    return RunResult.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None
