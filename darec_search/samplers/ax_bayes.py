"""The default sampler: an Ax experiment with a generator of our own.

Ax holds space, arms, pending trials, failures and data, so that its analyses work (`AxBayesSampler.client`); the
generator (structured mixture, probabilistic reparameterisation) sits in Ax's generation strategy as an external node.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from darec_search.samplers.base import Observation, Options, Recommendation, Sampler, spread, unseen
from darec_search.samplers.proposer import Proposer
from darec_search.space import Point, SearchSpace
from trainer.threads import single_thread

# Ax logs a line when it is imported, and one for every trial: keep to its warnings.
_disabled = logging.root.manager.disable
logging.disable(logging.INFO)

from ax.api.client import Client  # noqa: E402
from ax.api.configs import ChoiceParameterConfig  # noqa: E402
from ax.core.data import Data  # noqa: E402
from ax.core.experiment import Experiment  # noqa: E402
from ax.core.trial_status import TrialStatus  # noqa: E402
from ax.generation_strategy.external_generation_node import ExternalGenerationNode  # noqa: E402
from ax.generation_strategy.generation_strategy import GenerationStrategy  # noqa: E402
from ax.utils.common.logger import set_ax_logger_levels  # noqa: E402

logging.disable(_disabled)
set_ax_logger_levels(logging.WARNING)

OBJECTIVE = "objective"
_Parameters = dict[str, Any]


class AxBayesOptions(Options):
    """Options of `ax_bayes`."""

    start: Annotated[int, Field(ge=1)] = Field(6, description="Balanced designs before the model takes over.")
    bank: Annotated[int, Field(ge=8)] = Field(256, description="Hyperparameter settings the surrogate averages over.")
    acquisition_optimizer: Literal["polished", "prob_reparam"] = Field(
        "polished",
        description="`polished`: probabilistic reparameterisation, then local search. "
        "`prob_reparam`: ends with a draw z ~ p(z | θ) instead, as the paper's Algorithm 1.",
    )


class AxBayesSampler(Sampler):
    """Bayesian optimisation through an Ax `Client`."""

    Options = AxBayesOptions

    def __init__(self, space: SearchSpace, seed: int, options: AxBayesOptions) -> None:
        super().__init__(space, seed, options)
        self._proposer = Proposer(space, options.bank, polish=options.acquisition_optimizer == "polished")
        self._node = _Node(self._proposer, spread(space, seed, options.start))
        self.client = Client()
        self.client.configure_experiment(name="search", parameters=_configs(space))
        self.client.configure_optimization(objective=OBJECTIVE)
        self.client.set_generation_strategy(GenerationStrategy(name="structured_bayes", nodes=[self._node]))

    @property
    def learns_from_related(self) -> bool:
        return True

    def _learn_from(self, studies: Sequence[Sequence[Observation]]) -> None:
        with single_thread():
            self._proposer.learn_from(studies)
            # What was best there is the first thing to try here.
            best = [Proposer(self.space).recommend(study, 1)[0].point for study in studies]
        self._node.start = list(dict.fromkeys([*best, *self._node.start]))[: max(len(best), len(self._node.start) // 2)]

    def _propose(self, pending: list[Point], rng: np.random.Generator) -> Point:
        self._synchronise(pending)
        self._node.rng, self._node.infeasible, self._node.given_up = (
            rng,
            self.history.infeasible,
            self.history.given_up(),
        )
        with single_thread():
            ((_, parameters),) = self.client.get_next_trials(max_trials=1).items()
        return _point(self.space, parameters)

    def _recommend(self, count: int) -> list[Recommendation]:
        with single_thread():
            return self._proposer.recommend(self.history.observations, count)

    def _record(self, observation: Observation) -> None:
        super()._record(observation)
        sem = float("nan") if observation.stderr is None else observation.stderr
        self.client.complete_trial(self._running_trial(observation.point), {OBJECTIVE: (observation.value, sem)})

    def _record_failure(self, point: Point, reason: str) -> None:
        super()._record_failure(point, reason)
        self.client.mark_trial_failed(self._running_trial(point), failed_reason=reason)

    def _running_trial(self, point: Point) -> int:
        """The Ax trial under way for a point; attached now if it was never asked for."""
        parameters = _parameters(self.space, point)
        for index, trial in self._experiment.trials.items():
            if trial.status == TrialStatus.RUNNING and trial.arms[0].parameters == parameters:
                return index
        return self.client.attach_trial(parameters)

    def _synchronise(self, pending: list[Point]) -> None:
        """Make Ax's running trials the pending points: attach what is missing, abandon what was dropped."""
        missing = Counter(pending)
        for index, trial in self._experiment.trials.items():
            if trial.status != TrialStatus.RUNNING:
                continue
            point = _point(self.space, trial.arms[0].parameters)
            if missing[point] > 0:
                missing[point] -= 1
            else:
                self.client.mark_trial_abandoned(index)
        for point in missing.elements():
            self.client.attach_trial(_parameters(self.space, point))

    @property
    def _experiment(self) -> Experiment:
        return self.client._experiment


class _Node(ExternalGenerationNode):
    """Our generator in Ax's generation strategy: start designs, then the proposer."""

    def __init__(self, proposer: Proposer, start: list[Point]) -> None:
        super().__init__(name="structured_mixture", should_deduplicate=False)
        self.rng = np.random.default_rng(0)
        self._proposer, self._space, self.start = proposer, proposer.space, start
        self._observations: list[Observation] = []
        self.infeasible: list[Point] = []
        self.given_up: list[Point] = []
        self._dropped: set[Point] = set()

    def update_generator_state(self, experiment: Experiment, data: Data) -> None:
        """Read the results out of the experiment."""
        points = {i: _point(self._space, trial.arms[0].parameters) for i, trial in experiment.trials.items()}
        frame = data.df
        rows = zip(frame["trial_index"], frame["mean"], frame["sem"], strict=True)
        self._observations = [
            Observation(points[index], float(mean), None if np.isnan(sem) else float(sem)) for index, mean, sem in rows
        ]
        indices = experiment.trial_indices_by_status
        running = {points[index] for index in indices[TrialStatus.RUNNING]}
        self._dropped = {points[index] for index in indices[TrialStatus.ABANDONED]} - running

    def get_next_candidate(self, pending_parameters: list[_Parameters]) -> _Parameters:
        """The next design as Ax parameters."""
        pending = [_point(self._space, parameters) for parameters in pending_parameters]
        # Ax counts abandoned trials as pending; nobody runs them any more, so they may be proposed again.
        pending = [point for point in pending if point not in self._dropped]
        return _parameters(self._space, self._next(pending))

    def _next(self, pending: list[Point]) -> Point:
        seen = [observation.point for observation in self._observations] + self.given_up
        taken = {*seen, *pending}
        # Loss weights tried at one architecture (a λ grid) say nothing about bits: only architectures count.
        if len({point.bits for point in taken}) < len(self.start):
            for point in self.start:
                if point not in taken:
                    return point
        if self._observations:
            proposal = self._proposer.propose(self._observations, self.given_up, pending, self.rng, self.infeasible)
            if proposal is not None:
                return proposal
        return unseen(self._space, self.rng, seen, pending)


def _searched(space: SearchSpace) -> dict[str, tuple[float, ...]]:
    """Loss weights that Ax sees: it knows no parameter with a single value."""
    return {name: levels for name, levels in space.weights.items() if len(levels) > 1}


def _configs(space: SearchSpace) -> list[ChoiceParameterConfig]:
    bits = [
        ChoiceParameterConfig(name=name, values=[0, 1], parameter_type="int", is_ordered=True) for name in _names(space)
    ]
    weights = [
        ChoiceParameterConfig(name=name, values=list(levels), parameter_type="float", is_ordered=True)
        for name, levels in _searched(space).items()
    ]
    return [*bits, *weights]


def _names(space: SearchSpace) -> list[str]:
    return [f"bit_{i}" for i in range(space.bits)]


def _parameters(space: SearchSpace, point: Point) -> _Parameters:
    weights = {name: point.weights[name] for name in _searched(space)}
    return {**dict(zip(_names(space), point.bits, strict=True)), **weights}


def _point(space: SearchSpace, parameters: Mapping[str, Any]) -> Point:
    weights = {name: float(parameters.get(name, levels[0])) for name, levels in space.weights.items()}
    return Point(tuple(int(parameters[name]) for name in _names(space)), weights)
