"""Designs that compete for the places of a block: one look at the surrogate, then the cheapest update for each choice.

A design that has been chosen counts as under way: it is believed to end at its posterior mean, so that means stay and
variances shrink. With v_i the column of the design i (`StructuredMixture.projected`) and ν its noise, choosing c adds
one row to the Cholesky factor of the observations and to every column,

    r_i = (k_ci - v_c·v_i) / sqrt(k_cc - v_c·v_c + ν),      var_i falls by r_i²,

which costs one product with the columns; a new factor and new columns would cost n times as much.

Notation: C components, n observations and designs under way, P candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darec_search.samplers.acquisition import log_improvement
from darec_search.samplers.surrogate import StructuredMixture


class Candidates:
    """A pool of designs and their posterior, which `choose` keeps up to date.

    Args:
        model: the surrogate; call its `pending` first for designs under way.
        x: [P, D] encoded designs.
        incumbent: value to improve on.
        fidelities: F, at which they may be tried; with more than one they are compared by what an evaluation teaches
            of the target (`log_expected_gain`), with one by `log_expected_improvement`.
    """

    def __init__(self, model: StructuredMixture, x: Tensor, incumbent: float, fidelities: int = 1) -> None:
        self._model, self._x, self._incumbent = model, x, incumbent
        looks = [model.projected(x, fidelity) for fidelity in range(fidelities)]
        self._means = looks[0][0]
        self._columns = [projected for _, projected in looks]
        self._rows: list[list[Tensor]] = [[] for _ in range(fidelities)]
        """By fidelity what each choice has added, [C, P]."""
        target = self._columns[0]
        self._variances = [
            model.prior_variance(x, fidelity) - columns.square().sum(1)
            for fidelity, columns in enumerate(self._columns)
        ]
        self._shared = [
            model.prior_variance(x, 0) * model.link(fidelity) - (target * columns).sum(1)
            for fidelity, columns in enumerate(self._columns)
        ]
        """Covariance of each candidate's value at a fidelity with its own at the target."""

    def log_gains(self, fidelity: int = 0) -> Tensor:
        """[P] log of the expected gain of trying each candidate at a fidelity."""
        moved = self._variances[0].clamp_min(1e-10)
        if len(self._columns) > 1:
            noise = self._model.noise_variance(fidelity)[:, None]
            moved = self._shared[fidelity].square() / (self._variances[fidelity].clamp_min(1e-10) + noise)
        sigma = (moved * self._model.unit[:, None]).clamp_min(1e-20).sqrt()
        return log_improvement(self._means, sigma, self._model.weights, self._incumbent)

    def choose(self, place: int, fidelity: int = 0) -> None:
        """Take a candidate as under way at a fidelity."""
        own = self._columns[fidelity][:, :, place]
        pivot = (self._variances[fidelity][:, place] + self._model.noise_variance(fidelity)).sqrt()
        added = [row[:, place] for row in self._rows[fidelity]]
        chosen, new = self._x[place][None], []
        for other, columns in enumerate(self._columns):
            left = self._model.covariance(chosen, fidelity, self._x, other)[:, 0]
            left = left - torch.einsum("cn,cnp->cp", own, columns)
            for mine, row in zip(added, self._rows[other], strict=True):
                left = left - mine[:, None] * row
            new.append(left / pivot[:, None])
        for other, row in enumerate(new):
            self._rows[other].append(row)
            self._variances[other] = self._variances[other] - row.square()
            self._shared[other] = self._shared[other] - new[0] * row
