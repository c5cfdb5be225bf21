"""Who competes in a promotion: decided once, at its beginning, and kept in `promotion_arms.json`.

From the search what its sampler recommends and what scored best, in turn; the fixed arms: all serial, all parallel and
DARec_base; architectures that the config names; and whom the caller brings, such as a reigning champion. A promotion
that goes on finds the same arms. When the search has gone on, or `promotion` asks for others, it begins anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationError

from darec_search.asking import Proposing
from darec_search.controller import search_fidelities, search_fidelity
from darec_search.space import Point
from darec_search.study import Study, Trial
from darec_search.trial import SEARCH_STAGES, Stage, TrialSpec, make_spec
from darec_search.variants import DAREC_BASE
from darec_search.winner import scale_of
from trainer.architecture import FIXED_ARMS, Architecture
from trainer.config import Section
from trainer.errors import BadInput

_FILE = "promotion_arms.json"
_FRESH_SEEDS = 1000
"""Distance of the re-tests' seeds from those of the search."""

logger = logging.getLogger(__name__)
Origin = Literal["search", "fixed", "given", "extra"]


class PromotionFailed(RuntimeError):  # noqa: N818 - reads as what it is where it is raised
    """There is nothing to promote, such as when no trial finished."""


class Competitor(Section):
    """One arm of the re-test."""

    arm: str = Field(description="best-1, …, serial, parallel, darec_base, given-1, …, or as its bringer calls it.")
    origin: Origin = Field(description="`search`, `fixed`, `given` by the config or an `extra` one of the caller.")
    bits: tuple[int, ...]
    weights: dict[str, float]
    search_value: float | None = Field(description="Mean validation MRR during the search, where it was tried.")

    @property
    def point(self) -> Point:
        """Its design."""
        return Point(self.bits, self.weights)

    @property
    def stage(self) -> Stage:
        """Of its re-tests."""
        return "variant" if self.arm == DAREC_BASE else "retest"

    def spec(self, study: Study, seed: int, number: int = 0) -> TrialSpec:
        """Its re-test with the seed number `seed`, counted from 0."""
        chosen = study.config.seed + _FRESH_SEEDS + seed
        return make_spec(study.id, number, self.stage, self.point, chosen, search_fidelity(study), self.arm)


class Competition(Section):
    """`promotion_arms.json`: all arms, and what the search tells of noise."""

    decided_by: str = Field(description="Hash of the search's results and of what `promotion` asks for.")
    scale: float = Field(description="What validation MRR varied by in the search at most (standard deviation).")
    luckiest: str | None = Field(description="The arm with the best score of the search.")
    arms: tuple[Competitor, ...]

    @property
    def fixed(self) -> list[int]:
        """Numbers of the fixed arms, which win ties."""
        return [number for number, one in enumerate(self.arms) if one.origin == "fixed"]

    def budget(self, study: Study) -> int:
        """Re-test trainings at most."""
        settings = study.config.promotion
        return max(len(self.arms), settings.budget or settings.repeats * len(self.arms))


def competition(study: Study, extra: Mapping[str, Point] | None = None) -> Competition:
    """The arms of this study's promotion, as they were decided, or decided now.

    Args:
        study: its search is over.
        extra: further arms by name; of no effect on a promotion that has begun.

    Raises:
        PromotionFailed: if no trial of the search finished.
        BadInput: if `promotion.arms` or an extra arm does not fit the model.
    """
    key = _key(study)
    file = study.folder / _FILE
    try:
        found = Competition.model_validate_json(file.read_text(encoding="utf-8"))
        if found.decided_by == key:
            return found
    except (OSError, ValidationError):
        pass
    decided = _decide(study, extra or {}, key)
    study.write(_FILE, decided.model_dump_json(indent=2))
    return decided


def _decide(study: Study, extra: Mapping[str, Point], key: str) -> Competition:
    values = search_values(study, "mrr")
    arms: dict[str, tuple[Origin, Point]] = {
        arm: ("fixed" if arm in FIXED_ARMS else "search", point) for arm, point in candidates(study).items()
    }
    weights = arms[FIXED_ARMS[0]][1].weights
    for place, bits in enumerate(parse_arms(study.config.promotion.arms, study.space.layers), 1):
        _join(arms, f"given-{place}", "given", Point(bits, weights))
    for arm, point in extra.items():
        if arm in arms or arm == DAREC_BASE or len(point.bits) != study.space.bits:
            raise BadInput(
                f"the arm {arm} cannot be re-tested: its name is taken, or it has not {study.space.bits} bits"
            )
        _join(arms, arm, "extra", point)
    competitors = [
        Competitor(arm=arm, origin=origin, bits=point.bits, weights=dict(point.weights), search_value=values.get(point))
        for arm, (origin, point) in arms.items()
    ]
    if not _is_base(study):
        bits = Architecture.uniform(study.space.layers, "serial").bits
        used = {name: weight for name, weight in weights.items() if name != "collaborative"}
        competitors.append(Competitor(arm=DAREC_BASE, origin="fixed", bits=bits, weights=used, search_value=None))
    luckiest = max(values, key=values.__getitem__)
    return Competition(
        decided_by=key,
        scale=scale_of([trial.objective for trial in _search_trials(study) if trial.objective is not None]),
        luckiest=next((one.arm for one in competitors if one.stage == "retest" and one.point == luckiest), None),
        arms=tuple(competitors),
    )


def _join(arms: dict[str, tuple[Origin, Point]], arm: str, origin: Origin, point: Point) -> None:
    """Add an arm unless its design competes already."""
    same = next((name for name, (_, other) in arms.items() if other == point), None)
    if same is None:
        arms[arm] = (origin, point)
    else:
        logger.info("%s is the same design as %s and is not tested twice", arm, same)


def _is_base(study: Study) -> bool:
    """Whether the searched model lacks what DARec_base leaves out, so that it would be all serial once more."""
    model = study.config.model
    return model.masks == ("causal",) and model.collaborative.model == "none"


def parse_arms(texts: tuple[str, ...], layers: int) -> list[tuple[int, ...]]:
    """The bits of `promotion.arms`.

    Raises:
        BadInput: if one does not fit the model.
    """
    try:
        return [Architecture.parse(text, layers).bits for text in texts]
    except ValueError as error:
        raise BadInput(f"promotion.arms: {error}") from error


def candidates(study: Study) -> dict[str, Point]:
    """The arms with an architecture that the search and the fixed arms bring, by name.

    First the sampler's recommendations and the designs of best mean value, in turn. The recommendation leads, because
    the luckiest of many noisy trials is seldom the best; its weights are the fixed arms' too. What scored best follows
    in case the sampler's model is wrong.

    Raises:
        PromotionFailed: if no trial of the search finished.
    """
    values = search_values(study, study.config.search.objective)
    if not values:
        failed = [trial.result.reason for trial in study.trials() if trial.result and trial.result.reason]
        raise PromotionFailed(f"no trial of the search finished{': ' + failed[-1] if failed else ''}")
    count = study.config.promotion.candidates
    ranked = sorted(values, key=lambda point: -values[point])
    recommended = _recommended(study, count) or ranked[:1]
    turns = itertools.chain.from_iterable(itertools.zip_longest(recommended, ranked))
    best = list(dict.fromkeys(point for point in turns if point is not None))[:count]
    arms = {f"best-{place}": point for place, point in enumerate(best, 1)}
    for kind in FIXED_ARMS:
        point = Point(Architecture.uniform(study.space.layers, kind).bits, best[0].weights)
        # A fixed arm that the search found by itself keeps its own name.
        arms = {arm: other for arm, other in arms.items() if other != point}
        arms[kind] = point
    return arms


def _recommended(study: Study, count: int) -> list[Point]:
    """What a sampler of bits and λ recommends that knows all trials of the search as the search's own samplers do.

    Empty if none of their designs, as the config has them now, has a value.
    """
    whole = Proposing(study, "joint", study.space, {}, search_fidelities(study))
    sampler = whole.told(trial for trial in _search_trials(study, cheaper=True) if trial.spec.point in study.space)
    return [row.point for row in sampler.recommend(count)] if sampler.history.observations else []


def search_values(study: Study, objective: str) -> dict[Point, float]:
    """Mean value by an objective of every point that the search finished at its own fidelity."""
    values: dict[Point, list[float]] = defaultdict(list)
    for trial in _search_trials(study):
        value = trial.search_value(objective)
        if value is not None and math.isfinite(value):
            values[trial.spec.point].append(value)
    return {point: statistics.fmean(found) for point, found in values.items()}


def _search_trials(study: Study, *, cheaper: bool = False) -> list[Trial]:
    """Every trial of the search, whatever part of it asked, by number; the `cheaper` ones only on request."""
    wanted = search_fidelities(study) if cheaper else (search_fidelity(study),)
    return [trial for trial in study.trials() if trial.spec.stage in SEARCH_STAGES and trial.spec.fidelity in wanted]


def _key(study: Study) -> str:
    settings = study.config.promotion
    ended = sorted((trial.spec.id, trial.status) for trial in _search_trials(study, cheaper=True) if trial.result)
    asked = {"candidates": settings.candidates, "arms": settings.arms, "searched": ended}
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
