"""The search space: three bits a DALayer × ordinal levels, of loss weights or of whatever else has some."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WEIGHTS = ("align", "contrastive", "collaborative")


@dataclass(frozen=True)
class Point:
    """One design.

    Args:
        bits: 3L values, layer by layer: causal, context, recommendation; 0 serial, 1 parallel.
        weights: loss weight by name; empty where the space has none.
    """

    bits: tuple[int, ...]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.bits, tuple(sorted(self.weights.items()))))


class SearchSpace:
    """Bits × λ.

    Args:
        layers: number of DALayers L; 0 for a space of levels alone.
        slots: adapters per layer.
        weights: levels by name, rising, of loss weights or other ordinal settings; may be empty if there are layers.

    Raises:
        ValueError: if there is nothing to search, or the levels of a weight are empty, repeated or not rising.
    """

    def __init__(self, layers: int, slots: int = 3, weights: Mapping[str, Sequence[float]] | None = None) -> None:
        if layers < 0 or slots < 1 or (layers == 0 and not weights):
            raise ValueError(f"layers and slots must be positive, or there must be levels, got {layers} and {slots}")
        self.layers = layers
        self.slots = slots
        self.weights: dict[str, tuple[float, ...]] = {
            name: tuple(float(level) for level in levels) for name, levels in (weights or {}).items()
        }
        for name, levels in self.weights.items():
            if not levels or any(a >= b for a, b in itertools.pairwise(levels)):
                raise ValueError(f"weights.{name}: levels must be given in rising order, got {list(levels)}")

    @property
    def bits(self) -> int:
        """Number of bits, L × slots."""
        return self.layers * self.slots

    @property
    def size(self) -> int:
        """Number of points."""
        return 2**self.bits * math.prod(len(levels) for levels in self.weights.values())

    def __contains__(self, point: object) -> bool:
        return (
            isinstance(point, Point)
            and len(point.bits) == self.bits
            and all(bit in (0, 1) for bit in point.bits)
            and set(point.weights) == set(self.weights)
            and all(point.weights[name] in levels for name, levels in self.weights.items())
        )

    def encode(self, point: Point) -> NDArray[np.float64]:
        """[bits + weights] vector: bits in {0, 1}, then each weight's level index.

        Raises:
            ValueError: if the point lies outside the space.
        """
        if point not in self:
            raise ValueError(f"{point} lies outside the search space")
        levels = [self.weights[name].index(point.weights[name]) for name in self.weights]
        return np.array([*point.bits, *levels], dtype=np.float64)

    def decode(self, vector: Sequence[float] | NDArray[np.float64]) -> Point:
        """Inverse of `encode`; values are rounded to the nearest bit and level."""
        bits = tuple(round(float(value)) for value in vector[: self.bits])
        levels = [round(float(value)) for value in vector[self.bits :]]
        weights = {name: values[level] for (name, values), level in zip(self.weights.items(), levels, strict=True)}
        return Point(bits, weights)

    def sample(self, rng: np.random.Generator) -> Point:
        """A point drawn uniformly."""
        bits = tuple(int(bit) for bit in rng.integers(0, 2, self.bits))
        return Point(bits, {name: float(rng.choice(levels)) for name, levels in self.weights.items()})

    def points(self) -> Iterator[Point]:
        """Every point, in lexicographic order of the encoding."""
        axes = [range(2)] * self.bits + [range(len(levels)) for levels in self.weights.values()]
        for vector in itertools.product(*axes):
            yield self.decode(vector)

    def neighbours(self, point: Point) -> Iterator[Point]:
        """All points one step away: a flipped bit, or a weight one level up or down."""
        vector = self.encode(point)
        for i in range(self.bits):
            flipped = vector.copy()
            flipped[i] = 1 - flipped[i]
            yield self.decode(flipped)
        for i, levels in enumerate(self.weights.values(), start=self.bits):
            for step in (-1, 1):
                if 0 <= vector[i] + step < len(levels):
                    moved = vector.copy()
                    moved[i] += step
                    yield self.decode(moved)
