"""The default sampler: an Ax experiment with a generator of our own.

Ax holds space, arms, pending trials, failures and data, so that its analyses work (`AxBayesSampler.client`); the
generator (structured mixture, probabilistic reparameterisation) sits in Ax's generation strategy as an external node.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from darec_search.samplers.base import Observation, Options, Recommendation, Sampler, Suggestion, spread, unseen
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
FIDELITY = "fidelity"
"""Name of the Ax parameter where there are cheaper evaluations; 0 is the target."""
_Values = dict[str, Any]


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
        self._polished = options.acquisition_optimizer == "polished"
        self._proposer = Proposer(space, options.bank, polish=self._polished)
        self._begin(spread(space, seed, options.start))

    def _begin(self, start: list[Point]) -> None:
        """An empty experiment."""
        self._parameters = _Parameters(self.space, len(self.costs))
        self._node = _Node(self._proposer, self._parameters, start)
        self.client = Client()
        self.client.configure_experiment(name="search", parameters=self._parameters.configs())
        self.client.configure_optimization(objective=OBJECTIVE)
        self.client.set_generation_strategy(GenerationStrategy(name="structured_bayes", nodes=[self._node]))

    @property
    def learns_from_related(self) -> bool:
        return True

    @property
    def learns_from_fidelities(self) -> bool:
        return True

    def _use_fidelities(self, costs: tuple[float, ...]) -> None:
        self.costs = self._proposer.costs = costs
        self._begin(self._node.start)

    def _learn_from(self, studies: Sequence[Sequence[Observation]]) -> None:
        with single_thread():
            self._proposer.learn_from(studies)
            # What was best there is the first thing to try here.
            best = [Proposer(self.space).recommend(study, 1)[0].point for study in studies]
        self._node.start = list(dict.fromkeys([*best, *self._node.start]))[: max(len(best), len(self._node.start) // 2)]

    def _propose(self, pending: list[Point], rng: np.random.Generator) -> Point:
        return self._propose_at([Suggestion(point) for point in pending], rng).point

    def _propose_at(self, pending: list[Suggestion], rng: np.random.Generator) -> Suggestion:
        self._prepare(pending, rng)
        with single_thread():
            ((_, parameters),) = self.client.get_next_trials(max_trials=1).items()
        return self._parameters.decode(parameters)

    def _propose_together(self, pending: list[Suggestion], count: int, chosen: list[Suggestion]) -> list[Suggestion]:
        if not self._polished:  # every draw has a θ of its own
            return super()._propose_together(pending, count, chosen)
        self._prepare([*pending, *chosen], self._rng(pending))
        # Ax would hand the node one design at a time, and compare all pending ones with each other before each.
        self._node.update_generator_state(self._experiment, self._experiment.lookup_data())
        with single_thread():
            together = self._node.together(pending, count, chosen, self._rng)
        for suggestion in together:
            self.client.attach_trial(self._parameters.encode(suggestion))
        return together

    def _prepare(self, pending: list[Suggestion], rng: np.random.Generator) -> None:
        """Tell Ax what is under way, and the node what Ax does not know."""
        self._synchronise(pending)
        self._node.rng, self._node.infeasible, self._node.given_up = (
            rng,
            self.history.infeasible,
            self.history.given_up(),
        )

    def _recommend(self, count: int) -> list[Recommendation]:
        with single_thread():
            return self._proposer.recommend(self.history.observations, count)

    def _record(self, observation: Observation) -> None:
        super()._record(observation)
        sem = float("nan") if observation.stderr is None else observation.stderr
        trial = self._running_trial(Suggestion(observation.point, observation.fidelity))
        self.client.complete_trial(trial, {OBJECTIVE: (observation.value, sem)})

    def _record_failure(self, tried: Suggestion, reason: str) -> None:
        super()._record_failure(tried, reason)
        self.client.mark_trial_failed(self._running_trial(tried), failed_reason=reason)

    def _running_trial(self, tried: Suggestion) -> int:
        """The Ax trial under way for what was tried; attached now if it was never asked for."""
        parameters = self._parameters.encode(tried)
        for index, trial in self._experiment.trials.items():
            if trial.status == TrialStatus.RUNNING and trial.arms[0].parameters == parameters:
                return index
        return self.client.attach_trial(parameters)

    def _synchronise(self, pending: list[Suggestion]) -> None:
        """Make Ax's running trials the pending ones: attach what is missing, abandon what was dropped."""
        missing = Counter(pending)
        for index, trial in self._experiment.trials.items():
            if trial.status != TrialStatus.RUNNING:
                continue
            suggestion = self._parameters.decode(trial.arms[0].parameters)
            if missing[suggestion] > 0:
                missing[suggestion] -= 1
            else:
                self.client.mark_trial_abandoned(index)
        for suggestion in missing.elements():
            self.client.attach_trial(self._parameters.encode(suggestion))

    @property
    def _experiment(self) -> Experiment:
        return self.client._experiment


class _Parameters:
    """Points as Ax's parameters, with the fidelity as one more where there are several.

    Args:
        space: the designs.
        fidelities: F.
    """

    def __init__(self, space: SearchSpace, fidelities: int) -> None:
        self._space, self._fidelities = space, fidelities
        self._bits = [f"bit_{i}" for i in range(space.bits)]
        # Ax knows no parameter with a single value.
        self._searched = {name: levels for name, levels in space.weights.items() if len(levels) > 1}

    def configs(self) -> list[ChoiceParameterConfig]:
        """The experiment's parameters."""
        values: dict[str, tuple[list[Any], Literal["int", "float"]]] = {name: ([0, 1], "int") for name in self._bits}
        values |= {name: (list(levels), "float") for name, levels in self._searched.items()}
        if self._fidelities > 1:
            values[FIDELITY] = (list(range(self._fidelities)), "int")
        return [
            ChoiceParameterConfig(name=name, values=of, parameter_type=kind, is_ordered=True)
            for name, (of, kind) in values.items()
        ]

    def encode(self, suggestion: Suggestion) -> _Values:
        """The parameters of an arm."""
        point = suggestion.point
        values = {**dict(zip(self._bits, point.bits, strict=True)), **{n: point.weights[n] for n in self._searched}}
        return {**values, FIDELITY: suggestion.fidelity} if self._fidelities > 1 else values

    def decode(self, values: Mapping[str, Any]) -> Suggestion:
        """What an arm tries."""
        weights = {name: float(values.get(name, levels[0])) for name, levels in self._space.weights.items()}
        point = Point(tuple(int(values[name]) for name in self._bits), weights)
        return Suggestion(point, int(values.get(FIDELITY, 0)))


class _Node(ExternalGenerationNode):
    """Our generator in Ax's generation strategy: start designs, then the proposer."""

    def __init__(self, proposer: Proposer, parameters: _Parameters, start: list[Point]) -> None:
        super().__init__(name="structured_mixture", should_deduplicate=False)
        self.rng = np.random.default_rng(0)
        self._proposer, self._space, self._parameters, self.start = proposer, proposer.space, parameters, start
        self._observations: list[Observation] = []
        self.infeasible: list[Point] = []
        self.given_up: list[Point] = []
        self._dropped: set[Suggestion] = set()

    def update_generator_state(self, experiment: Experiment, data: Data) -> None:
        """Read the results out of the experiment."""
        tried = {i: self._parameters.decode(trial.arms[0].parameters) for i, trial in experiment.trials.items()}
        frame = data.df
        self._observations = []
        for index, mean, sem in zip(frame["trial_index"], frame["mean"], frame["sem"], strict=True):
            point, fidelity = tried[index].point, tried[index].fidelity
            known = None if np.isnan(sem) else float(sem)
            self._observations.append(Observation(point, float(mean), known, fidelity))
        indices = experiment.trial_indices_by_status
        running = {tried[index] for index in indices[TrialStatus.RUNNING]}
        self._dropped = {tried[index] for index in indices[TrialStatus.ABANDONED]} - running

    def get_next_candidate(self, pending_parameters: list[_Values]) -> _Values:
        """The next design as Ax parameters."""
        pending = [self._parameters.decode(values) for values in pending_parameters]
        # Ax counts abandoned trials as pending; nobody runs them any more, so they may be proposed again.
        pending = [suggestion for suggestion in pending if suggestion not in self._dropped]
        return self._parameters.encode(self._next(pending))

    def together(
        self,
        pending: list[Suggestion],
        count: int,
        chosen: list[Suggestion],
        rng_of: Callable[[Sequence[Suggestion]], np.random.Generator],
    ) -> list[Suggestion]:
        """What follows `chosen` in a block; the proposer thinks once for all that it proposes.

        Args:
            pending: what is under way apart from the block.
            count: designs wanted.
            chosen: what of the block has been suggested before.
            rng_of: the generator of a proposal with so much under way, for those that need no thought.
        """
        block = list(chosen)
        while len(block) < len(chosen) + count and (design := self._start_design([*pending, *block])):
            block.append(design)
        left = len(chosen) + count - len(block)
        if self._observations and left:
            block += self._proposer.propose_together(
                self._observations, self.given_up, pending, block, left, self.rng, self.infeasible
            )
        while len(block) < len(chosen) + count:
            block.append(self._unseen([*pending, *block], rng_of([*pending, *block])))
        return block[len(chosen) :]

    def _next(self, pending: list[Suggestion]) -> Suggestion:
        start = self._start_design(pending)
        if start is not None:
            return start
        if self._observations:
            proposal = self._proposer.propose(self._observations, self.given_up, pending, self.rng, self.infeasible)
            if proposal is not None:
                return proposal
        return self._unseen(pending, self.rng)

    def _start_design(self, pending: list[Suggestion]) -> Suggestion | None:
        """The next of the start designs; None when enough designs have been tried."""
        taken = {*self._seen(), *(suggestion.point for suggestion in pending)}
        # Loss weights tried at one architecture (a λ grid) say nothing about bits: only architectures count.
        counted = {point.bits for point in taken} if self._space.bits else taken
        if len(counted) < len(self.start):
            for place, point in enumerate(self.start):
                if point not in taken:
                    return Suggestion(point, place % len(self._proposer.costs))
        return None

    def _unseen(self, pending: list[Suggestion], rng: np.random.Generator) -> Suggestion:
        return Suggestion(unseen(self._space, rng, self._seen(), [suggestion.point for suggestion in pending]))

    def _seen(self) -> list[Point]:
        return [observation.point for observation in self._observations] + self.given_up
