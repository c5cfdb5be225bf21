"""Local search over encoded designs: every change of one parameter, or of two, taken while it improves.

Notation: D parameters (bits, then weights); a design is its vector of level indices, [D].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Acquisition = Callable[[Tensor], Tensor]
"""[m, D] encoded points to [m] values, larger is better."""

_DECIMALS = 9
"""Values are compared after rounding, so that the last bits of a matrix product never decide."""


class LocalSearch:
    """Best-improvement ascent.

    Args:
        levels: number of values of each of the D parameters.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        self._levels = torch.tensor(levels, dtype=torch.float64)
        self._single = _single_changes(levels)
        self._double = _double_changes(self._single)

    def polish(self, designs: Tensor, acquisition: Acquisition) -> Tensor:
        """Local optima: single changes from every design [m, D], then all double changes from the best."""
        designs = self._climb(designs, acquisition, self._single)
        for _ in range(3):
            best = designs[rounded(acquisition(designs)).argmax()][None]
            improved = self._climb(best, acquisition, self._double, rounds=1)
            if torch.equal(improved, best):
                break
            designs = torch.cat([designs, self._climb(improved, acquisition, self._single)])
        return designs

    def _climb(self, designs: Tensor, acquisition: Acquisition, changes: Tensor, rounds: int = 100) -> Tensor:
        """Ascent of every design under a set of changes [k, D] (added modulo the levels)."""
        values = rounded(acquisition(designs))
        active = torch.arange(len(designs))
        for _ in range(rounds):
            near = (designs[active, None] + changes) % self._levels
            near_values = rounded(acquisition(near.flatten(0, 1))).reshape(len(active), -1)
            best_values, best = near_values.max(1)
            better = best_values > values[active]
            if not better.any():
                break
            designs, values = designs.clone(), values.clone()
            designs[active[better]] = near[better, best[better]]
            values[active[better]] = best_values[better]
            active = active[better]
        return designs


def rounded(values: Tensor) -> Tensor:
    """Values as they are compared."""
    return values.round(decimals=_DECIMALS)


def _single_changes(levels: tuple[int, ...]) -> Tensor:
    """Every change of one parameter, [k, D]: a flip, or any other level."""
    rows = [(i, step) for i, count in enumerate(levels) for step in range(1, count)]
    changes = torch.zeros(len(rows), len(levels), dtype=torch.float64)
    for row, (i, step) in enumerate(rows):
        changes[row, i] = step
    return changes


def _double_changes(single: Tensor) -> Tensor:
    """Every change of two different parameters."""
    first, second = torch.triu_indices(len(single), len(single), offset=1)
    apart = ((single != 0).double() @ (single != 0).double().T)[first, second] == 0
    return (single[first] + single[second])[apart]
