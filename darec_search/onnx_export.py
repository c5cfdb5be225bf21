"""`scores.onnx`: the scores of all items after histories, for a program without PyTorch (extra `onnx`).

items   in   int64 [batch, length]   places in items.parquet, oldest first, -1 fills the left; at most max_items
users   in   int64 [batch]           places in users.parquet, -1 for a user who was not trained on
scores  out  float32 [batch, items]  of every item, in the order of items.parquet

Tokens, frozen model, adapters, CF vectors, fold-in and the prior from counts are inside. What is written is compared
with the torch model before it is kept.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darec_search.card import read_card
from darec_search.recommender import Recommender
from darec_search.verification import NotReproduced, evenly
from trainer.data.dataset import Dataset, Split
from trainer.data.ragged import Ragged
from trainer.errors import BadInput
from trainer.ranking import seen_before

FILE = "scores.onnx"
TOLERANCE = 1e-4
"""Largest difference from the torch model's scores, relative to the larger of 1 and the score."""
_COMPARED = 32
_TOGETHER = 64
_LARGEST = 1_500_000_000
"""Bytes of weights beyond which they lie in a file beside the graph: one protobuf holds 2 GB."""


def require_onnx() -> None:
    """Check that the packages are there.

    Raises:
        BadInput: if one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(
            f"format onnx-scores needs {' and '.join(missing)}; install them by `pip install 'darec-search[onnx]'`"
        )


def write_scores(recommender: Recommender, dataset: Dataset, folder: Path) -> None:
    """Write `scores.onnx` and compare its scores with the model's.

    Args:
        recommender: the export, on the CPU.
        dataset: whose training histories are compared.
        folder: where to write.

    Raises:
        NotReproduced: if the scores differ by more than `TOLERANCE`.
    """
    import torch

    trained = recommender.trained
    scores = trained.padded_scores()
    size = sum(tensor.numel() * tensor.element_size() for tensor in scores.state_dict().values())
    items, users = _example(min(recommender.card.max_items, 3))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=1, max=recommender.card.max_items)
    dynamic = {"items": {0: batch, 1: length}, "users": {0: batch}} if recommender.card.max_items > 1 else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            scores,
            (torch.from_numpy(items), torch.from_numpy(users)),
            input_names=["items", "users"],
            output_names=["scores"],
            dynamic_shapes=dynamic or {"items": {0: batch}, "users": {0: batch}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(folder / FILE, external_data=size > _LARGEST)
    _compare(recommender, dataset, folder)


def ranks_of(folder: Path, dataset: Dataset, split: Split, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Ranks of the held-out items of some users, 1 + #higher + ½ #ties, by `scores.onnx` alone.

    Args:
        folder: an export of format `onnx-scores`.
        dataset: the one that it was trained on.
        split: whose items are ranked.
        chosen: numbers of the users.
    """
    card, histories, targets = read_card(folder), dataset.inputs(split).take(chosen), dataset.targets(split)[chosen]
    found = _scores(folder, padded(histories, card.max_items), chosen)
    if card.exclude_seen:
        seen = seen_before(histories, targets)
        found[seen.row_of_value, seen.values] = -np.inf
    own = np.take_along_axis(found, targets.astype(np.int64)[:, None], 1)
    ranks: NDArray[np.float64] = 1 + (found > own).sum(1) + ((found == own).sum(1) - 1) / 2
    return ranks


def padded(histories: Ragged, max_items: int) -> NDArray[np.int64]:
    """[histories, longest] the newest items of each, filled with -1 on the left: the input `items`."""
    newest = histories.newest(max_items)
    longest = int(newest.lengths.max(initial=1))
    items = np.full((len(newest), longest), -1, np.int64)
    within = np.arange(len(newest.values)) - np.repeat(newest.offsets[1:], newest.lengths)
    items[newest.row_of_value, longest + within] = newest.values
    return items


def _example(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two histories that take every path: filling, and a user who was not trained on."""
    items = np.zeros((2, length), np.int64)
    items[1, :-1] = -1
    return items, np.array([0, -1], np.int64)


def _compare(recommender: Recommender, dataset: Dataset, folder: Path) -> None:
    chosen = evenly(np.arange(dataset.n_users), _COMPARED)
    histories = dataset.train.take(chosen)
    users = np.where(np.arange(len(chosen)) % 2, -1, chosen)
    expected = recommender.trained.scores([row.astype(np.int64) for row in histories], users).numpy()
    found = _scores(folder, padded(histories, recommender.card.max_items), users)
    off = float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())
    if not off <= TOLERANCE:
        raise NotReproduced(
            f"the export is not kept: scores of {FILE} differ from the model's by {off:.1e}, more than {TOLERANCE:.0e}"
        )


def _scores(folder: Path, items: NDArray[np.int64], users: NDArray[np.int64]) -> NDArray[np.float32]:
    require_onnx()
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    parts = [
        session.run(["scores"], {"items": items[start : start + _TOGETHER], "users": users[start : start + _TOGETHER]})[
            0
        ]
        for start in range(0, len(users), _TOGETHER)
    ]
    scores: NDArray[np.float32] = np.concatenate(parts)
    return scores
