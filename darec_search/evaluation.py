"""What an exported model is worth on a dataset: metrics at cutoffs, by segment, user by user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from trainer.data.dataset import Dataset, Split
from trainer.errors import BadInput
from trainer.exposure import exposure
from trainer.metrics import per_user_metrics, ranking_metrics
from trainer.ranking import Ranked
from trainer.segments import HISTORY_LENGTH, TARGET_FREQUENCY, segment_metrics

_SEGMENT_COLUMNS = {"mrr": "MRR", "recall@10": "Recall@10", "ndcg@10": "NDCG@10"}
_CUTOFF_COLUMNS = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "coverage": "coverage",
    "arp": "popularity",
    "popularity_lift": "against histories",
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A dataset's users, ranked."""

    dataset: Dataset
    split: Split
    cutoffs: tuple[int, ...]
    """Each k, rising."""
    ranked: Ranked
    """Ranks, and top lists of the longest cutoff."""

    def document(self) -> dict[str, Any]:
        """Everything but the single users, for machines."""
        top = self.ranked.top_items.numpy()
        segments = {
            "history_length": segment_metrics(self._lengths, HISTORY_LENGTH, self.ranked.ranks, self.cutoffs),
            "target_frequency": segment_metrics(self._target_counts, TARGET_FREQUENCY, self.ranked.ranks, self.cutoffs),
        }
        return {
            "split": self.split,
            "users": self.dataset.n_users,
            **ranking_metrics(self.ranked.ranks, self.cutoffs),
            **exposure(top, self._counts, self.dataset.inputs(self.split), self.cutoffs),
            "segments": segments,
        }

    def save_per_user(self, path: Path) -> None:
        """Write a Parquet file with a row a user, so that two models can be compared by a paired test.

        Columns: `user` and `target` (ids), `rank`, `reciprocal_rank`, `recall@k` and `ndcg@k` of every cutoff,
        `history_length` (items before the target), `target_frequency` (its interactions in the training part).

        Raises:
            BadInput: if it cannot be written.
        """
        metrics = per_user_metrics(self.ranked.ranks, self.cutoffs)
        at = [f"{name}@{k}" for k in self.cutoffs for name in ("recall", "ndcg")]
        columns = {
            "user": self.dataset.user_ids,
            "target": [self.dataset.item_ids[item] for item in self._targets],
            "rank": self.ranked.ranks.numpy(),
            "reciprocal_rank": metrics["mrr"].numpy(),
            **{name: metrics[name].numpy() for name in at},
            "history_length": self._lengths,
            "target_frequency": self._target_counts,
        }
        try:
            pq.write_table(pa.table(columns), path)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({error.strerror or error}); choose another file") from error

    @cached_property
    def _targets(self) -> NDArray[np.int32]:
        return self.dataset.targets(self.split)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.bincount(self.dataset.train.values, minlength=self.dataset.n_items)

    @property
    def _target_counts(self) -> NDArray[np.int64]:
        return self._counts[self._targets]

    @property
    def _lengths(self) -> NDArray[np.int64]:
        return self.dataset.inputs(self.split).lengths


def cutoff_table(document: Mapping[str, Any], cutoffs: Sequence[int]) -> Table:
    """`Evaluation.document` for people: a row a cutoff."""
    table = Table(title="The first k of each user", title_justify="left")
    for heading in ("k", *_CUTOFF_COLUMNS.values()):
        table.add_column(heading, justify="right")
    for k in cutoffs:
        values = {name: document[f"{name}@{k}"] for name in _CUTOFF_COLUMNS}
        ranking = (f"{values[name]:.4f}" for name in ("recall", "ndcg", "mrr"))
        shown = (f"{values['coverage']:.1%}", f"{values['arp']:.1f}", f"{values['popularity_lift']:+.1%}")
        table.add_row(str(k), *ranking, *shown)
    return table


def segment_table(document: Mapping[str, Any]) -> Table:
    """`Evaluation.document` for people: a row a segment."""
    table = Table(title="By segment", title_justify="left")
    table.add_column("users with")
    for heading in ("users", *_SEGMENT_COLUMNS.values()):
        table.add_column(heading, justify="right")
    segments = document["segments"]
    rows = {f"{name} items before": found for name, found in segments["history_length"].items()}
    rows |= {f"a {name} target": found for name, found in segments["target_frequency"].items()}
    for name, found in rows.items():
        values = (f"{found[column]:.4f}" if column in found else "" for column in _SEGMENT_COLUMNS)
        table.add_row(name, f"{found['users']:,}", *values)
    return table
