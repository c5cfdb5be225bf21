"""Other libraries' own optimisers, with as much of our samplers' contract as a benchmark needs.

Each is used as its documentation says and with its own defaults, keeps account itself of what is under way, and
recommends in its own way. A library that is not installed is skipped.

ax_default      Ax: `Client` with its default generation strategy; recommends by `get_best_parameterization`
botorch_ei      BoTorch: `SingleTaskGP` and `LogExpectedImprovement` over the best posterior mean (its Monte-Carlo twin
                when designs are under way), maximised by `optimize_acqf_discrete_local_search`, after ten Sobol points;
                recommends the highest posterior mean of the evaluated designs
botorch_nei     the same with `qLogNoisyExpectedImprovement`, which BoTorch advises for noisy results
native_tpe      Optuna's own ask and tell, where a sampler keeps one stream of random numbers and may propose a design
native_gp       again: `TPESampler` (multivariate, constant liar), `GPSampler` (with noise) and `CmaEsSampler`;
native_cmaes    recommends the best observed value, as Optuna does
smac            SMAC3: `HyperparameterOptimizationFacade`, which repeats what it likes; recommends its incumbent
nevergrad       Nevergrad: `NGOpt`, which chooses an optimiser by space and budget; its recommendation
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from darec_search.space import Point, SearchSpace


class Peer(ABC):
    """One library's optimiser. Bits and level indices are integers in order to it.

    Args:
        space: the designs.
        seed: of its random numbers.
        trials: evaluations of the search, for a library that plans with them.
        width: evaluations under way at a time, likewise.
    """

    def __init__(self, space: SearchSpace, seed: int, trials: int, width: int) -> None:
        self.space, self.seed, self.trials, self.width = space, seed, trials, width
        self.sizes = {f"bit_{i}": 2 for i in range(space.bits)}
        self.sizes |= {name: len(levels) for name, levels in space.weights.items()}
        self._running: dict[Point, list[Any]] = {}
        self._start()

    def ask(self, pending: Sequence[Point] = ()) -> Point:
        """The next design; the library itself knows what is under way."""
        trial, values = self._ask()
        point = self._point(values)
        self._running.setdefault(point, []).append(trial)
        return point

    def tell(self, point: Point, value: float) -> None:
        """Report a value; larger is better."""
        self._tell(self._running[point].pop(0), value)

    @abstractmethod
    def best(self) -> Point:
        """The recommendation."""

    @abstractmethod
    def _start(self) -> None:
        """Set the library up."""

    @abstractmethod
    def _ask(self) -> tuple[Any, Mapping[str, Any]]:
        """The library's next trial, and its values by name."""

    @abstractmethod
    def _tell(self, trial: Any, value: float) -> None:
        """Complete a trial."""

    def _point(self, values: Mapping[str, Any]) -> Point:
        return self.space.decode([float(values[name]) for name in self.sizes])


class Ax(Peer):
    """Ax as it comes."""

    def _start(self) -> None:
        from ax.api.client import Client
        from ax.api.configs import ChoiceParameterConfig
        from ax.utils.common.logger import set_ax_logger_levels

        set_ax_logger_levels(logging.ERROR)
        self._client = Client(random_seed=self.seed)
        self._client.configure_experiment(
            parameters=[
                ChoiceParameterConfig(name=name, values=list(range(size)), parameter_type="int", is_ordered=True)
                for name, size in self.sizes.items()
            ]
        )
        self._client.configure_optimization(objective="objective")

    def _ask(self) -> tuple[int, Mapping[str, Any]]:
        ((index, parameters),) = self._client.get_next_trials(max_trials=1).items()
        return index, parameters

    def _tell(self, trial: int, value: float) -> None:
        self._client.complete_trial(trial, {"objective": value})

    def best(self) -> Point:
        """By Ax's model."""
        parameters, *_ = self._client.get_best_parameterization()
        return self._point(parameters)


class BoTorch(Peer):
    """A Gaussian process with BoTorch's own priors; the acquisition as `noisy` says."""

    STARTUP = 10

    def __init__(self, *arguments: Any, noisy: bool) -> None:
        self._noisy = noisy
        super().__init__(*arguments)

    def _start(self) -> None:
        self._highest = torch.tensor([size - 1.0 for size in self.sizes.values()], dtype=torch.float64)
        sobol = torch.quasirandom.SobolEngine(len(self.sizes), scramble=True, seed=self.seed)  # type: ignore[no-untyped-call]
        unit = sobol.draw(self.STARTUP, dtype=torch.float64)
        self._designs = list((unit * (self._highest + 1)).floor() / self._highest)
        self._asked = 0
        self._values: dict[int, float] = {}

    def _ask(self) -> tuple[int, Mapping[str, Any]]:
        if self._asked == len(self._designs):
            torch.manual_seed(1000 * self.seed + self._asked)
            self._designs.append(self._proposal())
        self._asked += 1
        levels = (self._designs[self._asked - 1] * self._highest).round()
        return self._asked - 1, dict(zip(self.sizes, levels.tolist(), strict=True))

    def _proposal(self) -> torch.Tensor:
        from botorch.optim.optimize import optimize_acqf_discrete_local_search

        designs = torch.stack(self._designs)
        proposal, _ = optimize_acqf_discrete_local_search(
            self._acquisition(designs),
            discrete_choices=[torch.linspace(0, 1, size, dtype=torch.float64) for size in self.sizes.values()],
            q=1,
            X_avoid=designs,
        )
        return proposal[0]

    def _acquisition(self, designs: torch.Tensor) -> Any:
        from botorch.acquisition.analytic import LogExpectedImprovement
        from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement

        model, known = self._model(), sorted(self._values)
        pending = [i for i in range(len(designs)) if i not in self._values]
        best = model.posterior(designs[known]).mean.max().detach()
        if not self._noisy and not pending:
            return LogExpectedImprovement(model, best)
        noisy = qLogNoisyExpectedImprovement(model, designs[known], prune_baseline=True)
        acquisition = noisy if self._noisy else qLogExpectedImprovement(model, best)
        acquisition.set_X_pending(designs[pending] if pending else None)
        return acquisition

    def _model(self) -> Any:
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from gpytorch.mlls import ExactMarginalLogLikelihood

        known = sorted(self._values)
        values = torch.tensor([[self._values[i]] for i in known], dtype=torch.float64)
        model = SingleTaskGP(torch.stack([self._designs[i] for i in known]), values)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return model

    def _tell(self, trial: int, value: float) -> None:
        self._values[trial] = value

    def best(self) -> Point:
        """By the model."""
        designs = torch.stack([self._designs[i] for i in sorted(self._values)])
        best = self._model().posterior(designs).mean[:, 0].argmax()
        return self.space.decode((designs[best] * self._highest).round().tolist())


class Optuna(Peer):
    """An Optuna study with a sampler of its own, built with `options`."""

    def __init__(self, *arguments: Any, sampler: str, **options: Any) -> None:
        self._sampler, self._options = sampler, options
        super().__init__(*arguments)

    def _start(self) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = getattr(optuna.samplers, self._sampler)(seed=self.seed, **self._options)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        integer = optuna.distributions.IntDistribution
        self._distributions: dict[str, Any] = {name: integer(0, size - 1) for name, size in self.sizes.items()}

    def _ask(self) -> tuple[Any, Mapping[str, Any]]:
        trial = self._study.ask(self._distributions)
        return trial, trial.params

    def _tell(self, trial: Any, value: float) -> None:
        self._study.tell(trial, value)

    def best(self) -> Point:
        """Best observed value."""
        return self._point(self._study.best_params)


class Smac(Peer):
    """SMAC3 as it comes; it knows that results are noisy."""

    def _start(self) -> None:
        from ConfigSpace import ConfigurationSpace, Integer  # type: ignore[import-not-found]
        from smac import HyperparameterOptimizationFacade, Scenario  # type: ignore[import-not-found]

        space = ConfigurationSpace(seed=self.seed)
        space.add([Integer(name, (0, size - 1)) for name, size in self.sizes.items()])
        self._folder = tempfile.TemporaryDirectory()
        scenario = Scenario(space, n_trials=self.trials, seed=self.seed, output_directory=self._folder.name)
        self._smac = HyperparameterOptimizationFacade(scenario, lambda config, seed=0: 0.0, logging_level=40)

    def _ask(self) -> tuple[Any, Mapping[str, Any]]:
        trial = self._smac.ask()
        return trial, dict(trial.config)

    def _tell(self, trial: Any, value: float) -> None:
        from smac.runhistory import TrialValue  # type: ignore[import-not-found]

        self._smac.tell(trial, TrialValue(cost=-value))

    def best(self) -> Point:
        """The incumbent."""
        return self._point(dict(self._smac.intensifier.get_incumbent()))


class Nevergrad(Peer):
    """Nevergrad's own choice of an optimiser."""

    def _start(self) -> None:
        import nevergrad  # type: ignore[import-not-found]

        choices = {name: nevergrad.p.TransitionChoice(range(size)) for name, size in self.sizes.items()}
        parameters = nevergrad.p.Dict(**choices)
        parameters.random_state = np.random.RandomState(self.seed)
        self._optimizer = nevergrad.optimizers.NGOpt(parameters, budget=self.trials, num_workers=self.width)

    def _ask(self) -> tuple[Any, Mapping[str, Any]]:
        trial = self._optimizer.ask()
        return trial, trial.value

    def _tell(self, trial: Any, value: float) -> None:
        self._optimizer.tell(trial, -value)

    def best(self) -> Point:
        """Nevergrad's recommendation."""
        return self._point(self._optimizer.provide_recommendation().value)


PEERS: Mapping[str, Callable[[SearchSpace, int, int, int], Peer]] = {
    "ax_default": Ax,
    "botorch_ei": partial(BoTorch, noisy=False),
    "botorch_nei": partial(BoTorch, noisy=True),
    "native_tpe": partial(Optuna, sampler="TPESampler", multivariate=True, constant_liar=True),
    "native_gp": partial(Optuna, sampler="GPSampler", deterministic_objective=False),
    "native_cmaes": partial(Optuna, sampler="CmaEsSampler", warn_independent_sampling=False),
    "smac": Smac,
    "nevergrad": Nevergrad,
}
