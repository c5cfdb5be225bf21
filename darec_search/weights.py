"""λ of a staged search: which settings of the loss weights are tried at one architecture, and which was the best.

`grid`: every combination of levels. `one_at_a_time`: coordinate-wise; for each weight in turn all its levels, the
others at their best so far. A setting that a pass has in common with an earlier one is not run again.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from darec_search.config import StudyConfig
from darec_search.space import Point
from darec_search.study import Study, Trial


def searched(config: StudyConfig) -> dict[str, tuple[float, ...]]:
    """The loss weights that have a choice of levels."""
    return {name: levels for name, levels in config.search.weights.searched().items() if len(levels) > 1}


def trials_of(config: StudyConfig) -> int:
    """Trials of a whole search for λ."""
    sizes = [len(levels) for levels in searched(config).values()]
    if not sizes:
        return 0
    by_grid = config.search.weight_search == "grid"
    settings = math.prod(sizes) if by_grid else 1 + sum(size - 1 for size in sizes)
    return settings * config.search.weight_repeats


def start(config: StudyConfig) -> dict[str, float]:
    """The setting to begin with: each weight as `losses` has it if that is one of its levels, else its middle level."""
    given = config.losses.model_dump()
    return {
        name: given[name] if given[name] in levels else levels[len(levels) // 2]
        for name, levels in config.search.weights.searched().items()
    }


def passes(config: StudyConfig) -> list[list[str]]:
    """The weights whose levels are combined, pass by pass."""
    names = list(searched(config))
    if not names:
        return []
    return [names] if config.search.weight_search == "grid" else [[name] for name in names]


def runs(config: StudyConfig, at: Point, names: Sequence[str]) -> list[tuple[Point, int]]:
    """Points and seeds of a pass around a point; seed by seed, so that one cut short has compared all alike."""
    levels = [searched(config)[name] for name in names]
    settings = [
        Point(at.bits, {**at.weights, **dict(zip(names, combination, strict=True))})
        for combination in itertools.product(*levels)
    ]
    seeds = range(config.seed, config.seed + config.search.weight_repeats)
    return [(setting, seed) for seed in seeds for setting in settings]


def best(study: Study, trials: Iterable[Trial]) -> Point | None:
    """The point with the highest mean over its trials, the first of equals; None if no trial came to a value."""
    values: dict[Point, dict[str, float]] = defaultdict(dict)
    for trial in trials:
        value, _ = trial.estimate(study.config.search.objective)
        if value is not None and math.isfinite(value):
            values[trial.spec.point][trial.spec.id] = value
    return max(values, key=lambda point: statistics.fmean(values[point].values()), default=None)
