"""What the sampler is told of a trial. An objective is one line here.

What a study is after is validation MRR, and re-tests, final run and reports are in MRR. The search may go by another
figure that puts architectures in the same order and may differ less from seed to seed (docs/landscape.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

OBJECTIVES: Mapping[str, str] = {
    "mrr": "mean reciprocal rank over all items, best evaluation (the paper)",
    "log_likelihood": "minus the cross-entropy of the held-out items over all items, best evaluation",
}
"""Names of `search.objective`, each a metric of every evaluation, larger is better."""


def objective_of(name: str, rows: Iterable[Mapping[str, float]]) -> float | None:
    """The best value of an objective over the evaluations of a trial; None if no evaluation has it."""
    return max((row[name] for row in rows if name in row), default=None)
