"""Other libraries' own optimisers, with as much of our samplers' contract as a benchmark needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from darec_search.samplers import SAMPLERS, create
from darec_search.space import Point, SearchSpace


class Searcher(Protocol):
    """What is compared."""

    def ask(self, pending: Sequence[Point] = ()) -> Point:
        """The next design."""
        ...

    def tell(self, point: Point, value: float) -> None:
        """Report a value; larger is better."""
        ...

    def best(self) -> Point:
        """The recommendation."""
        ...


class AxDefault:
    """Ax as it comes: its default generation strategy, and the design that its model recommends."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        from ax.api.client import Client
        from ax.api.configs import ChoiceParameterConfig
        from ax.utils.common.logger import set_ax_logger_levels

        set_ax_logger_levels(logging.ERROR)
        self._space = space
        names = [*(f"bit_{i}" for i in range(space.bits)), *space.weights]
        sizes = [2] * space.bits + [len(levels) for levels in space.weights.values()]
        self._client = Client(random_seed=seed)
        self._client.configure_experiment(
            parameters=[
                ChoiceParameterConfig(name=name, values=list(range(size)), parameter_type="int", is_ordered=True)
                for name, size in zip(names, sizes, strict=True)
            ]
        )
        self._client.configure_optimization(objective="objective")
        self._names = names
        self._running: dict[Point, list[int]] = {}

    def ask(self, pending: Sequence[Point] = ()) -> Point:
        """Ax keeps what is pending itself."""
        ((index, parameters),) = self._client.get_next_trials(max_trials=1).items()
        point = self._space.decode([float(parameters[name]) for name in self._names])
        self._running.setdefault(point, []).append(index)
        return point

    def tell(self, point: Point, value: float) -> None:
        """Complete the oldest running trial of the design."""
        self._client.complete_trial(self._running[point].pop(0), {"objective": value})

    def best(self) -> Point:
        """By Ax's model."""
        parameters, *_ = self._client.get_best_parameterization(use_model_predictions=True)
        return self._space.decode([float(parameters[name]) for name in self._names])


PEERS: dict[str, Callable[[SearchSpace, int], Searcher]] = {"ax_default": AxDefault}
COMPARED = [*(name for name in SAMPLERS if name != "grid"), *PEERS]
"""The grid refuses spaces of this size."""


def searcher(name: str, space: SearchSpace, seed: int) -> Searcher:
    """A sampler of ours or a peer, by name."""
    return PEERS[name](space, seed) if name in PEERS else create(name, space, seed)
