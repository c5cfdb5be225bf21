"""Optuna's CMA-ES behind the contract.

Hansen (2016), "The CMA Evolution Strategy: A Tutorial". A normal distribution N(m, σ²C) over the unit cube, rounded to
bits and levels; every generation of results moves m towards its better half and adapts σ and C.

Optuna keeps the strategy's state in attributes of its trials. Here a study is rebuilt from the history for every
proposal: results in the order of telling are the generations, whether the strategy drew them or not, and Optuna's own
step is taken at the end of each.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import optuna
from optuna.trial import TrialState
from pydantic import Field

from darec_search.samplers.base import Options
from darec_search.samplers.optuna_sampler import OptunaSampler


class CmaEsOptions(Options):
    """Options of `optuna_cmaes`."""

    population: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Results of a generation; 4 + ⌊3 ln D⌋ of D parameters when absent."
    )


class CmaEsSampler(OptunaSampler):
    """Covariance matrix adaptation evolution strategy.

    The first design is random. Points under way are not proposed again, but have no other influence.
    """

    Options = CmaEsOptions
    options: CmaEsOptions

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.CmaEsSampler(
            seed=seed, popsize=self._population(), n_startup_trials=1, warn_independent_sampling=False
        )

    def _add_results(self, study: optuna.Study) -> None:
        population = self._population()
        for i, observation in enumerate(self.history.observations):
            generation, position = divmod(i, population)
            attributes: dict[str, Any] = {"cma:generation": generation}
            if position == 0 and generation > 0:
                attributes |= self._state_after_generation(study)
            study.add_trial(self._trial(observation.point, TrialState.COMPLETE, observation.value, attributes))

    def _state_after_generation(self, study: optuna.Study) -> dict[str, Any]:
        """Let Optuna take in the generation that is complete, and read where it notes its state."""
        study.ask(self._distributions())
        attributes = study.get_trials(deepcopy=False)[-1].system_attrs
        return {name: value for name, value in attributes.items() if name.startswith("cma:optimizer")}

    def _population(self) -> int:
        free = self.space.bits + sum(len(levels) > 1 for levels in self.space.weights.values())
        return self.options.population or 4 + math.floor(3 * math.log(free))
