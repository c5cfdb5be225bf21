"""Optuna's samplers behind the contract. The Optuna study is rebuilt from the history for every proposal."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Annotated, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from pydantic import Field

from darec_search.samplers.base import Options, Sampler, unseen
from darec_search.space import Point

_ATTEMPTS = 5
"""Proposals drawn before a design that is already taken is replaced by a random one."""


class OptunaOptions(Options):
    """Options of `optuna_tpe` and `optuna_gp`."""

    startup: Annotated[int, Field(ge=1)] = Field(10, description="Random designs before the model takes over.")


class OptunaSampler(Sampler):
    """Bits and level indices as integers; recommends the best mean value."""

    def _propose(self, pending: list[Point], rng: np.random.Generator) -> Point:
        taken = {*self.history.points(), *pending}
        if len(taken) < self.space.size:
            for _ in range(_ATTEMPTS):
                point = self._suggest(pending, int(rng.integers(2**31)))
                if point not in taken:
                    return point
        return unseen(self.space, rng, self.history.points(), pending)

    def _suggest(self, pending: list[Point], seed: int) -> Point:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(direction="maximize", sampler=self._sampler(seed))
        self._add_results(study)
        for point in self.history.failures:
            study.add_trial(self._trial(point, TrialState.FAIL))
        for point in pending:
            study.add_trial(self._trial(point, TrialState.RUNNING))
        params = study.ask(self._distributions()).params
        return self.space.decode([params[name] for name in self._distributions()])

    @abstractmethod
    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """The Optuna sampler, seeded."""

    def _add_results(self, study: optuna.Study) -> None:
        for observation in self.history.observations:
            study.add_trial(self._trial(observation.point, TrialState.COMPLETE, observation.value))

    def _trial(
        self, point: Point, state: TrialState, value: float | None = None, attributes: dict[str, Any] | None = None
    ) -> optuna.trial.FrozenTrial:
        distributions = self._distributions()
        vector = self.space.encode(point)
        params = {name: int(x) for name, x in zip(distributions, vector, strict=True)}
        return create_trial(
            state=state, value=value, params=params, distributions=distributions, system_attrs=attributes
        )

    def _distributions(self) -> dict[str, BaseDistribution]:
        names = [f"bit_{i}" for i in range(self.space.bits)] + list(self.space.weights)
        highest = [1] * self.space.bits + [len(levels) - 1 for levels in self.space.weights.values()]
        return {name: IntDistribution(0, high) for name, high in zip(names, highest, strict=True)}


class TPESampler(OptunaSampler):
    """Tree-structured Parzen estimator, multivariate, with the constant liar for pending points."""

    Options = OptunaOptions
    options: OptunaOptions

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=self.options.startup
        )


class GPSampler(OptunaSampler):
    """Gaussian process with log expected improvement, noise included."""

    Options = OptunaOptions
    options: OptunaOptions

    def _suggest(self, pending: list[Point], seed: int) -> Point:
        from trainer.threads import single_thread  # the other sampler needs no torch

        with single_thread():
            return super()._suggest(pending, seed)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(
            seed=seed, deterministic_objective=False, n_startup_trials=self.options.startup
        )
