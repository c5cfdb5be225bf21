"""An export at work: the best next items after a history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from darec_search.card import CARD, Card, read_card
from darec_search.digests import sha256
from darec_search.evaluation import Evaluation
from darec_search.titles import Items
from trainer.data.dataset import Dataset, Split
from trainer.data.ragged import read_table
from trainer.data.relations import RELATIONS_FILE, Relations
from trainer.errors import BadInput
from trainer.inference import FoldIn, TrainedModel, assemble, default_device
from trainer.metrics import CUTOFF
from trainer.training.model_file import load_model

FOLD_IN = "fold_in.safetensors"
_TOGETHER = 8192
"""Histories of one pass, so that a batch of any size takes little memory."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    id: str
    title: str
    score: float


class Recommender:
    """An export at work. Make one with `load`.

    Attributes:
        card: what the export says about itself.
        trained: its model.
        items: its items by name.
    """

    def __init__(self, card: Card, trained: TrainedModel, items: dict[str, list[str]], users: list[str]) -> None:
        self.card = card
        self.trained = trained
        self._ids = items["id"]
        self._titles = items["title"]
        self._users = {user: index for index, user in enumerate(users)}
        self.items = Items(self._ids, self._titles)

    @property
    def item_ids(self) -> list[str]:
        """Id of every item that can be recommended, in index order."""
        return list(self._ids)

    def knows(self, user: str) -> bool:
        """Whether a user was trained on."""
        return user in self._users

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        top: int = 10,
        users: Sequence[str | None] | None = None,
        *,
        exclude_seen: bool = False,
    ) -> list[list[Recommendation]]:
        """The best items after each history, best first.

        Args:
            histories: item ids, oldest first, at least one each.
            top: items per history; fewer where the catalogue has no more.
            users: user id of each history, where known; the others' CF vectors come from their histories, or are the
                average user's, whichever the card says ranked better.
            exclude_seen: leave out the items of the history. By default they may come again, as in the metrics.

        Raises:
            BadInput: if a history is empty or names an unknown item, or there are not as many users as histories.
        """
        if users is not None and len(users) != len(histories):
            raise BadInput(f"users: there are {len(users)} for {len(histories)} histories; give one each, or none")
        indices = [self._history(place, history) for place, history in enumerate(histories)]
        known = [self._users.get(user, -1) if user is not None else -1 for user in users or [None] * len(indices)]
        numbers = np.array(known, dtype=np.int64)
        found: list[list[Recommendation]] = []
        for start in range(0, len(indices), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            found += self._best(indices[part], top, numbers[part], exclude_seen)
        return found

    def titles(self, history: Sequence[str]) -> list[str]:
        """Titles of items by id."""
        return [self._titles[self.items.places[item]] for item in history]

    def evaluate(
        self, dataset: Dataset, split: Split = "test", cutoffs: Sequence[int] = (), *, exclude_seen: bool = False
    ) -> Evaluation:
        """Rank every user's held-out item of a dataset with the same items.

        Args:
            dataset: the dataset.
            split: `validation` or `test`, which is opened and that noted in the dataset's folder.
            cutoffs: each k, at least 1, of metrics beside 10.
            exclude_seen: leave out the items of the history, but for a held-out one that is among them; a model
                whose study was judged so always does.

        Raises:
            BadInput: if its items are not the export's.
        """
        if dataset.item_ids != self._ids:
            raise BadInput(
                f"{dataset.folder}: its {dataset.n_items} items are not the {len(self._ids)} items of this export; "
                "evaluate on the dataset that it was trained on"
            )
        every = tuple(sorted({CUTOFF, *cutoffs}))
        known = dataset.fingerprint == self.card.fingerprint
        if split == "test":
            dataset = dataset.unsealed(f"evaluation of the export {self.card.sha256[:12]} of study {self.card.study}")
        trained = replace(self.trained, exclude_seen=exclude_seen or self.trained.exclude_seen)
        ranked = trained.rank(dataset, split, known_users=known, top=every[-1])
        return Evaluation(dataset, split, every, ranked)

    def _best(
        self, histories: list[NDArray[np.int64]], top: int, users: NDArray[np.int64], exclude_seen: bool
    ) -> list[list[Recommendation]]:
        seen = [frozenset(history.tolist()) if exclude_seen else frozenset() for history in histories]
        # With so many more, `top` unseen ones are among them.
        values, chosen = self.trained.best(histories, top + max(map(len, seen)), users)
        ids, titles = self._ids, self._titles
        return [
            [
                Recommendation(ids[item], titles[item], value)
                for item, value in zip(row, row_values, strict=True)
                if item not in left_out
            ][:top]
            for row, row_values, left_out in zip(chosen.tolist(), values.tolist(), seen, strict=True)
        ]

    def _history(self, place: int, history: Sequence[str]) -> NDArray[np.int64]:
        if not history:
            raise BadInput(f"history {place + 1}: is empty; name at least one item id")
        try:
            return np.array([self.items.places[item] for item in history], dtype=np.int64)
        except KeyError as error:
            raise BadInput(f"history {place + 1}: item {error.args[0]!r} is unknown to this model") from None


def load(path: Path | str, device: str | None = None) -> Recommender:
    """Load an export.

    Args:
        path: the exported folder.
        device: where to put the model; CUDA when there is some, if absent.

    Raises:
        BadInput: if the folder is none, a part is missing or is not what the card describes.
    """
    folder = Path(path)
    card = read_card(folder)
    if card.format != "torch":
        raise BadInput(
            f"{folder}: is an export of format {card.format}, which holds no torch model; recommend from one of format "
            "torch"
        )
    items, users = read_tables(folder, card)
    if (folder / "model.safetensors").exists() and sha256(folder / "model.safetensors") != card.sha256:
        raise BadInput(f"{folder / 'model.safetensors'}: is not the one that {CARD} describes; export it again")
    state = load_model(folder / "model.safetensors")
    config = card.model
    if config.backbone.name == "backbone":
        local = config.backbone.model_copy(update={"name": str((folder / "backbone").resolve()), "revision": None})
        config = config.model_copy(update={"backbone": local})
    trained = assemble(
        config,
        items["sentence"],
        state,
        n_users=card.users,
        max_items=card.max_items,
        max_item_tokens=card.max_item_tokens,
        device=device or default_device(),
        relations=_relations(folder, card),
        exclude_seen=card.exclude_seen,
    )
    return Recommender(card, trained.folding_in(_fold_in(folder, card)), items, users)


def read_tables(folder: Path, card: Card) -> tuple[dict[str, list[str]], list[str]]:
    """Columns of the items, `id`, `title` and `sentence`, and ids of the users, in index order.

    Raises:
        BadInput: if a file is missing, or is not the one that the card describes.
    """
    file = folder / "items.parquet"
    if file.exists() and sha256(file) != card.items_sha256:
        raise BadInput(f"{file}: is not the one that {CARD} describes; export it again")
    try:
        items = read_table(file).to_pydict()
        users = read_table(folder / "users.parquet").column("id").to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise BadInput(f"{folder}: items.parquet or users.parquet cannot be read ({error}); export it again") from error
    return items, users


def _relations(folder: Path, card: Card) -> Relations | None:
    if card.model.prior is None:
        return None
    relations = Relations.load(folder / RELATIONS_FILE)
    if sha256(folder / RELATIONS_FILE) != card.relations_sha256:
        raise BadInput(f"{folder / RELATIONS_FILE}: is not the one that {CARD} describes; export it again")
    return relations


def _fold_in(folder: Path, card: Card) -> FoldIn | None:
    if card.unseen is None or card.unseen.default == "average":
        return None
    tensors = load_model(folder / FOLD_IN)
    try:
        return FoldIn(tensors["weight"], tensors["bias"])
    except KeyError as error:
        raise BadInput(f"{folder / FOLD_IN}: holds no {error.args[0]!r}; export it again") from None
