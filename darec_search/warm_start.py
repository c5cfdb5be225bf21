"""Warm start: old studies and exported cards as knowledge that a new study begins with (`search.warm_start`).

Trials of the same task (data, model, training, fidelity, λ) are told to the sampler as its own results would be. The
others become prior means (`samplers/prior.py`), which the sampler believes in as far as they predict the new results:
one for each fidelity of each old study. Failures are not taken over: they may owe to the machine.

A card is one result. Where its task is another, it tells that its architecture was the best of a search, so its prior
mean falls with the distance from it.

What was taken is copied into `warm_start.json` in the study folder, so that a study which is started again needs no old
folder and proposes as it would have done, even if the old study has gone on meanwhile.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from darec_search.card import CARD, read_card
from darec_search.config import StudyConfig
from darec_search.fidelities import trial_fidelity
from darec_search.identity import differing, identity
from darec_search.samplers.base import Observation, Sampler
from darec_search.space import WEIGHTS, Point, SearchSpace
from darec_search.study import Study, Trial
from darec_search.trial import SEARCH_STAGES, Fidelity
from trainer.config import Section
from trainer.errors import BadInput
from trainer.storage import absolute, is_url, local_path

logger = logging.getLogger(__name__)

RECORD = "warm_start.json"
_FEWEST = 4
"""Architectures below which an old study foretells nothing about others."""
_ZERO = 1e-12
"""What a loss weight of 0 counts as where orders of magnitude are compared."""
_ROUNDING = 1e-9


class OldTrial(Section):
    """One result of an old study."""

    bits: tuple[int, ...]
    weights: dict[str, float] = Field(description="All loss weights, searched or not.")
    value: float = Field(description="By the new study's objective.")
    stderr: float | None = Field(None, description="Of a trial that was stopped early: how sure its forecast was.")


class OldStudy(Section):
    """What a study takes from an old one."""

    folder: str = Field(description="As `search.warm_start` names it.")
    study: str = Field(description="Id of the old study.")
    objective: str = Field(description="The new study's.")
    judged_by: str | None = Field(None, description="What the values are, where the old study lacks the objective.")
    card: bool = Field(False, description="Whether it is a card, and so the best of its search.")
    fidelity: Fidelity = Field(description="Of all its trials here.")
    identity: dict[str, Any] = Field(description="What its trials' outcomes depend on.")
    trials: tuple[OldTrial, ...]

    @property
    def foretells(self) -> bool:
        """Whether it says something about designs that it has not tried."""
        return self.card or len({trial.bits for trial in self.trials}) >= _FEWEST

    def differences(self, new: Mapping[str, Any], fidelity: Fidelity) -> list[str]:
        """Fields in which its task differs from a new one, λ left out; the same task has none.

        The study's seed draws the users of a fraction, and is of no account where a trial sees all.
        """
        ignored = {f"losses.{name}" for name in WEIGHTS} | ({"seed"} if fidelity.users_fraction == 1 else set())
        fields = [name for name in differing(self.identity, dict(new)) if name not in ignored]
        fields += ["search.objective"] if self.judged_by is not None else []
        mine, its = fidelity.model_dump(), self.fidelity.model_dump()
        return fields + [f"fidelity.{name}" for name in mine if mine[name] != its[name]]


class _Record(Section):
    studies: tuple[OldStudy, ...]


@dataclass(frozen=True)
class Use:
    """How an old study would be used."""

    folder: str
    results: int
    """Trials that count as results of the new study; of a `staged` search those among them whose λ is chosen."""
    related: int
    """The other trials, which become a prior mean."""
    differs: list[str]
    """Fields in which its task differs."""


def old_studies(study: Study) -> list[OldStudy]:
    """What a study starts from, in the order of its config; recorded in its folder at the first call.

    Raises:
        BadInput: if an old study that is not recorded yet cannot be used.
    """
    recorded = _recorded(study.folder)
    found = _load(study.config, study.space.layers, recorded)
    if found != recorded:
        study.write(RECORD, _Record(studies=tuple(found)).model_dump_json(indent=1))
    return found


def check(config: StudyConfig, fingerprint: str, layers: int, sampler: Sampler | None) -> list[Use]:
    """How `search.warm_start` would be used; writes nothing.

    Args:
        config: the study.
        fingerprint: of its dataset.
        layers: number of its DALayers.
        sampler: the one that would be used, where it is known.

    Raises:
        BadInput: if an old study cannot be used, by this sampler or at all.
    """
    fidelity, new = trial_fidelity(config), identity(config, fingerprint, layers)
    space, fixed = SearchSpace(layers, weights=config.search.weights.searched()), _fixed(config)
    uses: dict[str, Use] = {}
    for old in _load(config, layers, _recorded(config.folder)):
        differs = old.differences(new, fidelity)
        results = 0 if differs else sum(_fits(trial, space, fixed) for trial in old.trials)
        related = len(old.trials) - results if old.foretells else 0
        use = uses.setdefault(old.folder, Use(old.folder, 0, 0, []))
        if (use.results or use.related) and not (results or related):
            continue
        news = [name for name in differs if name not in use.differs]
        uses[old.folder] = Use(old.folder, use.results + results, use.related + related, use.differs + news)
    for use in uses.values():
        _refuse_useless(use, config, sampler)
    return list(uses.values())


def _refuse_useless(use: Use, config: StudyConfig, sampler: Sampler | None) -> None:
    if use.results:
        return
    reason = (
        f"its task differs in {', '.join(use.differs)}" if use.differs else "its loss weights are none of this study's"
    )
    if sampler is not None and not sampler.learns_from_related:
        raise BadInput(
            f"search.warm_start: {use.folder}: {reason}, and {config.search.sampler} learns from the same task only; "
            "choose ax_bayes as search.sampler, or leave that study out"
        )
    if not use.related:
        raise BadInput(
            f"search.warm_start: {use.folder}: {reason}, and it has tried too few architectures to foretell anything "
            f"(fewer than {_FEWEST}); leave that study out"
        )


def tell(sampler: Sampler, study: Study, space: SearchSpace, weights: Mapping[str, float], fidelity: Fidelity) -> None:
    """Let a fresh sampler begin with what the study starts from.

    Args:
        sampler: proposes points of `space`.
        study: the new study.
        space: the designs.
        weights: loss weights that are the same for all of them, where the study has chosen them.
        fidelity: of the new trials.
    """
    fixed, related = {**_fixed(study.config), **weights}, []
    for old in old_studies(study):
        same = not old.differences(study.environment["identity"], fidelity)
        fitting = [same and _fits(trial, space, fixed) for trial in old.trials]
        for trial, fits in zip(old.trials, fitting, strict=True):
            if fits:
                sampler.tell(_nearest(trial, space), trial.value, trial.stderr)
        others = [trial for trial, fits in zip(old.trials, fitting, strict=True) if not fits]
        if old.card and others:
            related.append(_around(_nearest(others[0], space), space))
        elif len({trial.bits for trial in others}) >= _FEWEST:
            related.append(_projected(others, space, fixed))
    if related and sampler.learns_from_related:
        sampler.learn_from(related)
    elif related:
        ignored = sum(map(len, related))
        logger.warning(
            "search.warm_start: %d old trials have other loss weights or another task; %s learns nothing from them",
            ignored, study.config.search.sampler,
        )  # fmt: skip


def _load(config: StudyConfig, layers: int, recorded: Sequence[OldStudy]) -> list[OldStudy]:
    """The old studies that the config names: as recorded, or else from their folders."""
    objective = config.search.objective
    known: dict[str, list[OldStudy]] = defaultdict(list)
    for old in recorded:
        if old.objective == objective:
            known[old.folder].append(old)
    found: list[OldStudy] = []
    for folder in config.search.warm_start:
        if absolute(folder) == absolute(config.location):
            raise BadInput(f"search.warm_start: {folder} is this study's own `output`; name the folder of another one")
        found += known.get(folder) or _read(folder, objective)
        theirs = len(found[-1].trials[0].bits) // 3
        if theirs != layers:
            raise BadInput(
                f"search.warm_start: {folder} searched over {theirs} DALayers, this study's model has {layers}; leave "
                "that study out"
            )
    return found


def _read(folder: str, objective: str) -> list[OldStudy]:
    """What a study folder holds, one entry a fidelity, its own first; or a card."""
    path = local_path(folder)
    try:
        if not is_url(folder) and not (path / "study.yaml").exists() and (path.is_file() or (path / CARD).exists()):
            return [_read_card(folder, objective)]
        study = Study.load(folder)
        stages = (*SEARCH_STAGES, "retest", "full")
        trials = [trial for trial in study.trials() if trial.spec.stage in stages and not trial.spec.variant]
    except BadInput as error:
        raise BadInput(f"search.warm_start: {error}") from error
    own = trial_fidelity(study.config)
    groups: dict[Fidelity, list[Trial]] = {own: []}
    for trial in trials:
        groups.setdefault(trial.spec.fidelity, []).append(trial)
    found = [
        old for fidelity, group in groups.items() if (old := _of_fidelity(study, folder, fidelity, group, objective))
    ]
    if not found:
        raise BadInput(f"search.warm_start: {folder} has no finished trial yet; let it search first, or leave it out")
    return found


def _of_fidelity(
    study: Study, folder: str, fidelity: Fidelity, trials: Sequence[Trial], objective: str
) -> OldStudy | None:
    """The trials of one fidelity that have a value; by their MRR where any of them was not judged by the objective."""
    judged_by = None
    try:
        taken = [_old(study, trial, objective) for trial in trials]
    except BadInput:
        judged_by = "mrr"
        taken = [_old(study, trial, judged_by) for trial in trials]
    found = tuple(trial for trial in taken if trial is not None)
    if not found:
        return None
    return OldStudy(
        folder=folder, study=study.id, objective=objective, judged_by=judged_by, fidelity=fidelity,
        identity=study.environment["identity"], trials=found,
    )  # fmt: skip


def _read_card(folder: str, objective: str) -> OldStudy:
    """What the card of an export knows: the validation value of its architecture at the fidelity of its final run."""
    card = read_card(Path(folder))
    metrics, losses = card.metrics["validation"], card.losses.model_dump()
    judged_by = None if objective in metrics else "mrr"
    trial = OldTrial(
        bits=card.bits, weights={name: losses[name] for name in WEIGHTS}, value=metrics[judged_by or objective]
    )
    return OldStudy(
        folder=folder, study=card.study_id, objective=objective, judged_by=judged_by, card=True,
        fidelity=card.task.fidelity if card.task else Fidelity(users_fraction=1.0, epochs=card.epochs),
        identity=card.task.identity if card.task else {"fingerprint": card.fingerprint},
        trials=(trial,),
    )  # fmt: skip


def _old(study: Study, trial: Trial, objective: str) -> OldTrial | None:
    """A trial that has a value, else None."""
    value, stderr = trial.estimate(objective)
    if value is None or not math.isfinite(value):
        return None
    weights = {**_fixed(study.config), **trial.spec.weights}
    return OldTrial(bits=trial.spec.bits, weights=weights, value=value, stderr=stderr)


def _recorded(folder: Path) -> list[OldStudy]:
    file = folder / RECORD
    try:
        return list(_Record.model_validate_json(file.read_text(encoding="utf-8")).studies)
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise BadInput(
            f"{file}: cannot be read; remove it to take the old trials from search.warm_start again"
        ) from error


def _fixed(config: StudyConfig) -> dict[str, float]:
    """Every loss weight as `losses` has it."""
    losses = config.losses.model_dump()
    return {name: losses[name] for name in WEIGHTS}


def _fits(trial: OldTrial, space: SearchSpace, fixed: Mapping[str, float]) -> bool:
    """Whether an old trial had loss weights that a trial in `space` may have."""
    return all(
        weight in space.weights[name] if name in space.weights else weight == fixed[name]
        for name, weight in trial.weights.items()
    )


def _nearest(trial: OldTrial, space: SearchSpace) -> Point:
    """The point of `space` with the trial's bits, and each loss weight at the level nearest in order of magnitude."""
    levels = space.weights.items()
    return Point(
        trial.bits, {name: min(of, key=lambda level: _apart(level, trial.weights[name])) for name, of in levels}
    )


def _projected(trials: Sequence[OldTrial], space: SearchSpace, fixed: Mapping[str, float]) -> list[Observation]:
    """Old results as points of `space`; of those that meet at one point only the nearest in λ, not all as repeats."""
    points = [_nearest(trial, space) for trial in trials]
    distances = [
        sum(_apart(weight, {**fixed, **point.weights}[name]) for name, weight in trial.weights.items())
        for trial, point in zip(trials, points, strict=True)
    ]
    nearest: dict[Point, float] = {}
    for point, distance in zip(points, distances, strict=True):
        nearest[point] = min(distance, nearest.get(point, math.inf))
    return [
        Observation(point, trial.value, trial.stderr)
        for trial, point, distance in zip(trials, points, distances, strict=True)
        if distance <= nearest[point] + _ROUNDING
    ]


def _around(best: Point, space: SearchSpace) -> list[Observation]:
    """A card's architecture as results of a problem of its own: the best, and one less at each of its neighbours."""
    return [Observation(best, 0.0), *(Observation(point, -1.0) for point in space.neighbours(best))]


def _apart(one: float, other: float) -> float:
    """Orders of magnitude between two loss weights."""
    return abs(math.log10(max(one, _ZERO)) - math.log10(max(other, _ZERO)))
