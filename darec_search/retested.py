"""The re-tests of a promotion as the study folder has them: values by arm and seed, and ranks of single users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from darec_search.arms import Competition
from darec_search.study import Study, Trial
from darec_search.trial import TrialSpec
from darec_search.winner import Belief, believe, user_covariance
from trainer.training.ranks import load_ranks

Array = NDArray[np.float64]


class Retested:
    """The results of a competition's re-tests.

    Args:
        study: the study.
        field: its arms.
    """

    def __init__(self, study: Study, field: Competition) -> None:
        self._study, self._field = study, field
        self._ranks: dict[str, tuple[Array, int] | None] = {}

    def spec(self, arm: int, seed: int, number: int = 0) -> TrialSpec:
        """The re-test of an arm with the seed of a number from 0."""
        return self._field.arms[arm].spec(self._study, seed, number)

    def trials(self, arm: int, seeds: int) -> list[Trial]:
        """An arm's re-tests with the first so many seeds that have ended, by seed."""
        found = (self._ended(arm, seed) for seed in range(seeds))
        return [trial for trial in found if trial is not None]

    def results(self) -> dict[tuple[int, int], float | None]:
        """Validation MRR by arm and seed; None of a re-test that did not finish."""
        seeds = range(self._field.budget(self._study))
        found = {(arm, seed): self._ended(arm, seed) for arm in range(len(self._field.arms)) for seed in seeds}
        return {key: trial.objective for key, trial in found.items() if trial is not None}

    def judge(self, values: Array, arms: Sequence[int]) -> Belief:
        """The posterior of some arms' values [arms, seeds], with what their users' being a sample adds."""
        covariance, users = self._over_users(values, arms)
        searched = [self._field.arms[arm].origin == "search" for arm in arms]
        return replace(believe(values, arms, searched, self._field.scale, covariance), users=users)

    def _over_users(self, values: Array, arms: Sequence[int]) -> tuple[Array | None, int | None]:
        """[arms, arms] covariance of the means, and the users; None if some arm's re-tests kept no ranks."""
        per_user, counts = [], set()
        for arm, row in zip(arms, values, strict=True):
            found = [self._user_ranks(arm, seed, row[seed]) for seed in np.flatnonzero(np.isfinite(row)).tolist()]
            kept = [ranks for ranks in found if ranks is not None]
            counts |= {(len(ranks), users) for ranks, users in kept}
            if not kept or len(counts) > 1:
                return None, None
            per_user.append(np.stack([1 / ranks for ranks, _ in kept]))
        kept_users, users = counts.pop()
        return (user_covariance(per_user, users), users) if kept_users > 1 else (None, None)

    def _user_ranks(self, arm: int, seed: int, mrr: float) -> tuple[Array, int] | None:
        trial_id = self.spec(arm, seed).id
        if trial_id not in self._ranks:
            self._ranks[trial_id] = load_ranks(self._study.trial_folder(trial_id), mrr)
        return self._ranks[trial_id]

    def _ended(self, arm: int, seed: int) -> Trial | None:
        spec = self.spec(arm, seed)
        if not (self._study.trial_folder(spec.id) / "spec.json").exists():
            return None
        trial = self._study.trial(spec.id)
        return trial if trial.result is not None else None
