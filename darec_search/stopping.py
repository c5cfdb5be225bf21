"""Which trials need not go on: what a learning curve foretells, and what is worth waiting for.

Notation: n finished trials with objectives y and curves c; x_k = max(c_1 … c_k), the best of the first k evaluations,
whose last value a finished trial is judged by. In standardised units (u of x_k, v of y, over the finished trials)

    v = r u + ε,   ε ~ N(0, σ²),   r ~ N(0, σ²/κ),   σ² ~ inverse-gamma(½, ½)

so that the predictive is a Student t with n degrees of freedom, mean r̂ u and squared scale
(1 + n - r̂ Σuv)/n · (1 + 1/n + u²/(n + κ)), where r̂ = Σuv / (n + κ) (Gelman et al. 2013, Bayesian Data Analysis,
ch. 14); r̂ is not let below 0.

The prior says that a partial curve foretells nothing; the finished curves have to show that it does. Trials are stopped
by x alone, so what is left of them is no biased sample for the regression of y on x. Where x lies outside of what has
finished, the scale grows, and the trial goes on.

Nothing depends on scale and origin of the objective.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from darec_search.study import Trial
from darec_search.tracking.traces import read_curve
from darec_search.trial import Fidelity
from trainer.training.result import Forecast, Row, Stop

Rule = Literal["none", "curve", "median", "foretold"]
Curve = Sequence[float]
"""Objective at each evaluation so far, oldest first."""

_SHRINKAGE = 0.5
"""κ: the prior of the slope weighs as much as so many trials without any relation of start and end."""


@dataclass(frozen=True)
class Finished:
    """A trial that ran to its end."""

    curve: Curve
    objective: float


@dataclass(frozen=True)
class Prediction:
    """Student-t predictive of a running trial's objective."""

    mean: float
    scale: float
    degrees: float

    @property
    def deviation(self) -> float:
        """Standard deviation; there are more than two degrees of freedom."""
        return self.scale * math.sqrt(self.degrees / (self.degrees - 2))

    def chance_above(self, value: float) -> float:
        """Probability that the objective will be higher."""
        return float(student_t.sf((value - self.mean) / self.scale, self.degrees))


def predict(finished: Sequence[Finished], curve: Curve) -> Prediction | None:
    """What a running trial will end with, from its curve so far; None where the finished trials do not tell.

    Args:
        finished: trials of the same length; fewer than three tell nothing.
        curve: at least one value.
    """
    if len(finished) < 3:
        return None
    y = np.array([trial.objective for trial in finished])
    x, at = _starts(finished, len(curve)), max(curve)
    n, spread, width = len(y), float(y.std()), float(x.std())
    if not _varies(y, spread) or not _varies(x, width):
        return None
    u, v = (x - x.mean()) / width, (y - y.mean()) / spread
    slope = max(0.0, float(u @ v) / (n + _SHRINKAGE))
    place = (at - x.mean()) / width
    residual = (1 + n - slope * float(u @ v)) / n
    scale = math.sqrt(residual * (1 + 1 / n + place**2 / (n + _SHRINKAGE)))
    return Prediction(float(y.mean() + spread * slope * place), float(spread * scale), float(n))


def unlikely_to_win(finished: Sequence[Finished], curve: Curve, level: float) -> bool:
    """Whether the curve has cut the chance of beating all finished trials to less than `level` of what it was without.

    The chance itself would not do: of many trials hardly any becomes the best, whatever its curve.
    A trial that is no worse than the best finished ones were at the same age is never unlikely to win.

    Args:
        finished: trials of the same length.
        curve: at least one value.
        level: between 0 and 1.
    """
    prediction = predict(finished, curve)
    if prediction is None or max(curve) >= _starts(finished, len(curve)).max():
        return False
    y = np.array([trial.objective for trial in finished])
    n = len(y)
    before = Prediction(float(y.mean()), float(y.std()) * (1 + 1 / n), float(n))
    best = float(y.max())
    return prediction.chance_above(best) < level * before.chance_above(best)


def is_foretold(finished: Sequence[Finished], curve: Curve, share: float) -> bool:
    """Whether the curve leaves less than `share` of the variance of the finished trials' objectives open.

    Args:
        finished: trials of the same length.
        curve: at least one value.
        share: between 0 and 1.
    """
    prediction = predict(finished, curve)
    spread = np.std([trial.objective for trial in finished])
    return prediction is not None and prediction.scale**2 < share * float(spread) ** 2


def below_median(finished: Sequence[Finished], curve: Curve) -> bool:
    """The median rule (Golovin et al. 2017): worse than half of the finished trials were at the same age."""
    return max(curve) < median(_starts(finished, len(curve)).tolist())


class EarlyStopping:
    """Follows the curves of a search and says which trial need not go on.

    Args:
        rule: `curve` (`unlikely_to_win`), `median` (`below_median`), `foretold` (`is_foretold`, or unlikely to win), or
            `none`, which stops nothing.
        objective: name in `OBJECTIVES`.
        min_finished: finished trials before any is stopped.
        min_epochs: evaluations of a trial before it may be stopped.
        level: of `unlikely_to_win`.
        share: of `is_foretold`.
    """

    def __init__(
        self,
        rule: Rule,
        objective: str,
        *,
        min_finished: int = 6,
        min_epochs: int = 1,
        level: float = 0.1,
        share: float = 0.2,
    ) -> None:
        self._rule, self._objective = rule, objective
        self._min_finished, self._min_epochs, self._level = min_finished, min_epochs, level
        self._share = share
        self._finished: defaultdict[Fidelity, list[Finished]] = defaultdict(list)
        """By fidelity: a short trial's curve tells nothing of how a long one goes on."""
        self._curves: dict[str, dict[float, float]] = {}

    def ended(self, trial: Trial) -> None:
        """Learn from a trial's result: finished ones tell how curves go on."""
        self._curves.pop(trial.spec.id, None)
        value = trial.search_value(self._objective)
        if trial.result is not None and value is not None and math.isfinite(value) and trial.result.curve:
            curve = [row[self._objective] for row in trial.result.curve if self._objective in row]
            self._finished[trial.spec.fidelity].append(Finished(curve, value))

    def look(self, trial: Trial, row: Row) -> Stop | None:
        """Judge a running trial by its newest row; None lets it go on."""
        if self._rule == "none" or self._objective not in row:
            return None
        epochs = trial.spec.fidelity.epochs
        curve, finished = self._curve(trial, row), self._finished[trial.spec.fidelity]
        if len(curve) < self._min_epochs or row["epoch"] >= epochs or len(finished) < self._min_finished:
            return None
        prediction = predict(finished, curve)
        if prediction is None or not self._loses(finished, curve):
            return None
        forecast = Forecast(metric=self._objective, value=prediction.mean, stderr=prediction.deviation)
        reason = (
            f"stopped after epoch {row['epoch']:.0f} of {epochs}: {self._objective} {max(curve):.4f} so far foretells "
            f"{forecast.value:.4f} ± {forecast.stderr:.4f}"
        )
        return Stop(reason=reason, forecast=forecast)

    def _curve(self, trial: Trial, row: Row) -> list[float]:
        """The curve up to a row; what an earlier attempt has left of it is read once."""
        if trial.spec.id not in self._curves:
            earlier = read_curve(trial.folder / "curve.jsonl")
            self._curves[trial.spec.id] = {
                known["epoch"]: known[self._objective] for known in earlier if self._objective in known
            }
        values = self._curves[trial.spec.id]
        values[row["epoch"]] = row[self._objective]
        return [value for epoch, value in sorted(values.items()) if epoch <= row["epoch"]]

    def _loses(self, finished: Sequence[Finished], curve: Curve) -> bool:
        if self._rule == "median":
            return below_median(finished, curve)
        if self._rule == "foretold" and is_foretold(finished, curve, self._share):
            return True
        return unlikely_to_win(finished, curve, self._level)


def _starts(finished: Sequence[Finished], epochs: int) -> NDArray[np.float64]:
    """Best of the first `epochs` evaluations of each trial; of all, where patience has ended one before."""
    return np.array([max(trial.curve[:epochs]) for trial in finished])


def _varies(values: NDArray[np.float64], spread: float) -> bool:
    """Whether values differ by more than rounding."""
    return bool(spread > 1e-9 * np.abs(values).max())
