"""What a study's results say about its designs: `effects.json`, which the report draws.

A surrogate is fitted to the study's own trials, whatever sampler proposed them: those of the search and the re-tests at
the search's fidelity, with what is foretold of stopped ones. Prior knowledge of a warm start has no part in it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from darec_search.fidelities import trial_fidelity
from darec_search.study import Study, Trial
from darec_search.trial import SEARCH_STAGES
from trainer.architecture import SLOTS, Architecture
from trainer.config import Section
from trainer.errors import BadInput

if TYPE_CHECKING:
    from darec_search.samplers.base import Observation
    from darec_search.samplers.effects import Effect, Effects

RECORD = "effects.json"
_FEWEST = 5
"""Results below which nothing is said."""
_CHECKPOINTS = 12
"""Times in a search at which its belief is looked up: each costs a fit."""


class Interval(Section):
    """A posterior mean with its 90 % credible interval, in the objective's units."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


class AdapterEffect(Interval):
    """By how much the objective rises when an adapter is parallel, averaged over all architectures."""

    layer: int
    slot: str

    @property
    def name(self) -> str:
        """`L3 context`."""
        return f"L{self.layer} {self.slot}"


class Interaction(Interval):
    """By how much more one adapter's being parallel is worth where the other one is parallel."""

    first: str
    second: str


class Level(Interval):
    """A loss weight's level against the average of its levels."""

    level: float
    trials: int = Field(description="Results at this level.")


class LevelCurve(Section):
    """A loss weight's levels, at one architecture or on average over all."""

    name: str
    architecture: str | None = Field(description="Text form; None for the average over all architectures.")
    levels: tuple[Level, ...]


class Belief(Interval):
    """The recommended design's value as it was believed after so many results of the search."""

    trials: int


class RandomSearch(Section):
    """Best value so far, noise included, of a random search of as many trials: median and 90 % band."""

    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


class Insight(Section):
    """`effects.json`."""

    objective: str
    results: int = Field(description="Results that the surrogate was fitted to.")
    at: dict[str, float] = Field(description="Loss weights at which adapters were judged, where all had the same.")
    adapters: tuple[AdapterEffect, ...]
    pairs: int = Field(description="Pairs of adapters that were judged.")
    interactions: tuple[Interaction, ...] = Field(description="Those whose interval excludes 0, largest first.")
    weights: tuple[LevelCurve, ...]
    beliefs: tuple[Belief, ...]
    random: RandomSearch


def read_insight(folder: Path) -> Insight | None:
    """What `write_insight` left in a study folder; None if there is nothing that can be read."""
    try:
        return Insight.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def write_insight(study: Study) -> Insight | None:
    """Fit the surrogate and write `effects.json`; None while there are fewer than 5 results of 3 architectures."""
    trials = _trials(study)
    if len(trials) < _FEWEST or len({trial.spec.bits for trial in trials}) < 3:
        return None
    insight = _insight(study, trials)
    study.write(RECORD, insight.model_dump_json(indent=1))
    return insight


def _trials(study: Study) -> list[Trial]:
    """Trials with a value at the search's fidelity, in the order of their end."""
    fidelity, objective = trial_fidelity(study.config), study.config.search.objective
    found = [
        trial
        for trial in study.trials()
        if trial.spec.fidelity == fidelity
        and trial.spec.stage in (*SEARCH_STAGES, "retest")
        and trial.spec.point in study.space
        and _value(trial, objective) is not None
    ]
    return sorted(found, key=lambda trial: (trial.result.cost.ended_at if trial.result else 0.0, trial.spec.number))


def _value(trial: Trial, objective: str) -> tuple[float, float | None] | None:
    try:
        value, stderr = trial.estimate(objective)
    except BadInput:  # a trial of an older version, which has no such figure
        return None
    return (value, stderr) if value is not None and math.isfinite(value) else None


def _insight(study: Study, trials: Sequence[Trial]) -> Insight:
    # BoTorch takes seconds to import; who only reads the record needs none of it.
    from darec_search.samplers.effects import Effects
    from trainer.threads import single_thread

    searched = [trial for trial in trials if trial.spec.stage in SEARCH_STAGES]
    # Adapters are judged at the loss weights that architectures were tried with.
    judged = [trial for trial in searched if trial.spec.stage != "weights"] or searched
    shares = _shares(study, judged)
    with single_thread():
        effects = Effects(study.space, _observations(study, trials))
        names = [f"L{layer} {slot}" for layer in range(study.space.layers) for slot in SLOTS]
        pairs = effects.pairs(shares)
        return Insight(
            objective=study.config.search.objective,
            results=len(trials),
            at=_common_weights(judged),
            adapters=tuple(
                AdapterEffect(layer=i // len(SLOTS), slot=SLOTS[i % len(SLOTS)], **vars(effect))
                for i, effect in enumerate(effects.adapters(shares))
            ),
            pairs=len(pairs),
            interactions=_clear(pairs, names),
            weights=tuple(_curves(study, trials, effects)),
            **_hindsight(study, searched, judged, trials),
        )


def _clear(pairs: Mapping[tuple[int, int], Effect], names: Sequence[str]) -> tuple[Interaction, ...]:
    found = [Interaction(first=names[i], second=names[j], **vars(effect)) for (i, j), effect in pairs.items()]
    return tuple(sorted((pair for pair in found if pair.clear), key=lambda pair: -abs(pair.mean)))


def _curves(study: Study, trials: Sequence[Trial], effects: Effects) -> list[LevelCurve]:
    """Of a staged search at each architecture where levels were compared, else on average over all architectures."""
    places: list[tuple[int, ...] | None] = [None]
    if study.config.search.strategy == "staged":
        places = list(dict.fromkeys(trial.spec.bits for trial in trials if trial.spec.stage == "weights"))
    curves = []
    for bits in places:
        here = [trial for trial in trials if bits is None or trial.spec.bits == bits]
        shares = _shares(study, here)
        for name, levels in study.space.weights.items():
            counts = Counter(trial.spec.weights[name] for trial in here)
            if len(counts) < 2:
                continue
            found = effects.levels(name, shares) if bits is None else effects.levels_at(bits, name, shares)
            rows = tuple(
                Level(level=level, trials=counts[level], **vars(effect))
                for level, effect in zip(levels, found, strict=True)
            )
            curves.append(LevelCurve(name=name, architecture=Architecture(bits).text if bits else None, levels=rows))
    return curves


def _hindsight(
    study: Study, searched: Sequence[Trial], judged: Sequence[Trial], trials: Sequence[Trial]
) -> dict[str, object]:
    from darec_search.samplers.hindsight import believed, random_search

    own, count = _observations(study, searched), len(searched)
    counts = sorted({max(1, round(count * place / _CHECKPOINTS)) for place in range(1, _CHECKPOINTS + 1)})
    beliefs = zip(counts, believed(study.space, own, counts), strict=True)
    points = [trial.spec.point for trial in judged]
    low, median, high = zip(*random_search(study.space, _observations(study, trials), count, points), strict=True)
    return {
        "beliefs": tuple(Belief(trials=after, **vars(effect)) for after, effect in beliefs),
        "random": RandomSearch(low=low, median=median, high=high),
    }


def _observations(study: Study, trials: Sequence[Trial]) -> list[Observation]:
    from darec_search.samplers.base import Observation

    found = ((trial, _value(trial, study.config.search.objective)) for trial in trials)
    return [Observation(trial.spec.point, *value) for trial, value in found if value is not None]


def _shares(study: Study, trials: Sequence[Trial]) -> dict[str, list[float]]:
    """By loss weight how often these trials had each level."""
    return {
        name: [sum(trial.spec.weights[name] == level for trial in trials) / len(trials) for level in levels]
        for name, levels in study.space.weights.items()
    }


def _common_weights(trials: Sequence[Trial]) -> dict[str, float]:
    first = trials[0].spec.weights
    return dict(first) if all(trial.spec.weights == first for trial in trials) else {}
