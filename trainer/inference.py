"""A trained model at work: scores of all items after a history. The one door for exports and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.baselines import REFERENCES, Baseline, Catalogue, Reference, create_baseline, reference_ranks
from trainer.config import ModelConfig, RunConfig
from trainer.counting import PriorCounter
from trainer.data.dataset import Dataset, Split
from trainer.data.ragged import Ragged
from trainer.data.relations import Relations
from trainer.data.text import encode_items
from trainer.errors import BadInput
from trainer.models.backbones import LoadedBackbone, load_backbone
from trainer.models.collaborative.fold_in import FoldIn as FoldIn  # part of this door
from trainer.models.darec import DARec
from trainer.models.padded import PaddedScores
from trainer.models.streams import PROMPT, StreamPacker
from trainer.ranking import ItemScorer, Ranked
from trainer.training.evaluation import item_scorer, rank_users, read_histories
from trainer.training.precision import Precision, autocast
from trainer.training.sequence import rank_histories
from trainer.training.warm import Warm
from trainer.training.workers import Workers
from trainer.training.workers import default_device as default_device  # part of this door


@dataclass(frozen=True)
class TrainedModel:
    """A trained DARec with its streams. Make one with `restore` or `assemble`."""

    model: DARec
    packer: StreamPacker
    max_items: int
    device: str
    precision: Precision = "float32"
    fold_in: FoldIn | None = None
    """Gives users who were not trained on a CF vector of their own; without it they get the average user's."""
    counter: PriorCounter | None = None
    """Looks up what the model's prior counts, if it has one."""
    exclude_seen: bool = False
    """Whether `rank` leaves out the items of the history, but for a held-out one that is among them."""

    def scores(self, histories: Sequence[NDArray[np.int64]], users: NDArray[np.int64] | None = None) -> Tensor:
        """Scores of all items after each history. For a few histories: the result is [n, items].

        Args:
            histories: item indices of each user, oldest first, at least one each.
            users: [n] user of each history, -1 (the default) for users that were not trained on.

        Returns:
            [n, items] float32 on the CPU, larger is better.
        """
        states, scorer = self._read(histories, users)
        return scorer.all_scores(states).cpu()

    def best(
        self, histories: Sequence[NDArray[np.int64]], top: int, users: NDArray[np.int64] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best items after each history, best first, without holding the scores of all.

        Args:
            histories: as in `scores`.
            top: items of each history, or all if there are fewer.
            users: as in `scores`.

        Returns:
            Scores and item indices, both [n, top], on the CPU.
        """
        states, scorer = self._read(histories, users)
        scores, items = scorer.best(states, top)
        return scores.cpu(), items.cpu()

    def rank(
        self,
        dataset: Dataset,
        split: Split,
        *,
        known_users: bool,
        top: int = 0,
        chosen: NDArray[np.int64] | None = None,
    ) -> Ranked:
        """Rank of every user's held-out item, and each user's best items; `test` opens the test split.

        Args:
            dataset: a dataset whose items are the model's, in the same order.
            split: `validation` or `test`.
            known_users: the dataset's users are those the model was trained on.
            top: best items of each user that are wanted.
            chosen: numbers of the dataset's users that are ranked; all when absent.
        """
        chosen = np.arange(dataset.n_users) if chosen is None else chosen
        histories = dataset.inputs(split).take(chosen)
        users = chosen if known_users else np.full(len(chosen), -1)
        with autocast(self.precision, self.device):
            return rank_users(
                self.model,
                self.packer,
                histories,
                dataset.targets(split)[chosen],
                max_items=self.max_items,
                device=self.device,
                workers=Workers(0, 1),
                users=users,
                vectors=self._vectors(histories, users),
                top=top,
                counter=self.counter,
                exclude_seen=self.exclude_seen,
            )

    def ranks(self, dataset: Dataset, split: Split, *, known_users: bool) -> Tensor:
        """[users] the ranks alone of `rank`."""
        return self.rank(dataset, split, known_users=known_users).ranks

    def fitted_fold_in(self, dataset: Dataset, fitted: NDArray[np.int64] | None = None) -> FoldIn | None:
        """What `fold_in` may be, learned from trained users; None for a model without CF vectors.

        Args:
            dataset: the one that was trained on; its training part is read.
            fitted: numbers of the users to learn from; all when absent.
        """
        cf = self.model.collaborative
        if cf is None:
            return None
        fitted = np.arange(dataset.n_users) if fitted is None else fitted
        rows = dataset.train.take(fitted).newest(self.max_items)
        return FoldIn.fit(cf.items(), rows.values, rows.lengths, cf.users().detach().cpu()[fitted])

    def padded_scores(self) -> PaddedScores:
        """Scores of all items as one function of tensors, for a graph format; a model on the CPU."""
        partners = None if self.counter is None else self.counter.partners()
        return PaddedScores(self.model, self.packer, self.fold_in, partners).eval()

    def folding_in(self, fold_in: FoldIn | None) -> TrainedModel:
        """The same model with another fold-in, or none."""
        return replace(self, fold_in=fold_in)

    def _read(
        self, histories: Sequence[NDArray[np.int64]], users: NDArray[np.int64] | None
    ) -> tuple[Tensor, ItemScorer]:
        """States after the histories, and what scores them."""
        users = np.full(len(histories), -1) if users is None else users
        rows = Ragged.from_rows(histories)
        scorer = item_scorer(self.model, rows.newest(self.max_items), self.counter, self.device)
        with autocast(self.precision, self.device):
            states = read_histories(
                self.model,
                self.packer,
                rows,
                users,
                max_items=self.max_items,
                device=self.device,
                vectors=self._vectors(rows, users),
            )
        return states, scorer

    @torch.no_grad()
    def _vectors(self, histories: Ragged, users: NDArray[np.int64]) -> Tensor | None:
        """[n, representation] CF vectors where some users are folded in; None leaves it to the model."""
        unseen = np.flatnonzero(users < 0)
        cf = self.model.collaborative
        if self.fold_in is None or cf is None or not len(unseen):
            return None
        known = self.model.user_vectors(torch.from_numpy(users).to(self.device), False)
        assert known is not None
        vectors, rows = known.detach().cpu().clone(), histories.take(unseen).newest(self.max_items)
        vectors[torch.from_numpy(unseen)] = self.fold_in.vectors(cf.items(), rows.values, rows.lengths)
        return vectors


@dataclass(frozen=True)
class TrainedBaseline:
    """A trained baseline. Make one with `restore_baseline`."""

    model: Baseline
    max_items: int
    device: str
    exclude_seen: bool = False
    """As of `TrainedModel`."""

    def ranks(self, dataset: Dataset, split: Split) -> Tensor:
        """[users] rank of every user's held-out item; `test` opens the test split."""
        return rank_histories(
            self.model,
            dataset.inputs(split),
            dataset.targets(split),
            self.device,
            Workers(0, 1),
            max_items=self.max_items,
            exclude_seen=self.exclude_seen,
        ).ranks


@dataclass(frozen=True)
class CountedBaseline:
    """A reference, counted again. Make one with `restore_baseline`."""

    reference: Reference
    exclude_seen: bool = False
    """As of `TrainedModel`."""

    def ranks(self, dataset: Dataset, split: Split) -> Tensor:
        """[users] rank of every user's held-out item; `test` opens the test split."""
        return reference_ranks(self.reference, dataset, split, exclude_seen=self.exclude_seen)


def restore_baseline(
    config: RunConfig, state: dict[str, Tensor], dataset: Dataset, device: str = "cpu"
) -> TrainedBaseline | CountedBaseline:
    """The baseline of a run from its config, its trained tensors and what it was trained on.

    Args:
        config: the run; its `baseline` is there.
        state: trained tensors by name.
        dataset: the (sub)set that the run was trained on.
        device: where to put it.

    Raises:
        BadInput: if the tensors do not fit the config.
    """
    if config.baseline is None:
        raise ValueError("the run has no baseline")
    data = config.data
    if config.baseline.name in REFERENCES:
        return CountedBaseline(REFERENCES[config.baseline.name].fit(dataset), data.exclude_seen)
    model = create_baseline(config.baseline, Catalogue.of(dataset, config.cache), data.max_items, config.seed)
    try:
        model.load_trained_state(state)
    except ValueError as error:
        raise BadInput(f"the trained tensors do not fit the model ({error})") from error
    return TrainedBaseline(model.to(device).eval(), data.max_items, device, data.exclude_seen)


def restore(config: RunConfig, state: dict[str, Tensor], warm: Warm | None = None, device: str = "cpu") -> TrainedModel:
    """The DARec of a run from its config and trained tensors.

    Raises:
        BadInput: if the tensors do not fit the config.
    """
    materials = (warm or Warm()).materials(config)
    dataset = materials.dataset
    model = _model(config.model, materials.backbone, dataset.n_users, dataset.n_items, state, materials.relations)
    precision = config.execution.precision
    return TrainedModel(
        model.to(device),
        materials.packer,
        config.data.max_items,
        device,
        precision,
        counter=_counter(config.model, materials.relations),
        exclude_seen=config.data.exclude_seen,
    )


def assemble(
    config: ModelConfig,
    sentences: Sequence[str],
    state: dict[str, Tensor],
    *,
    n_users: int,
    max_items: int,
    max_item_tokens: int,
    device: str = "cpu",
    relations: Relations | None = None,
    exclude_seen: bool = False,
) -> TrainedModel:
    """The model of an export, which has no dataset.

    Args:
        config: the model; its backbone is a folder or a hub id.
        sentences: item sentence of every item, in index order.
        state: trained tensors by name.
        n_users: users that it was trained on.
        max_items: newest items of a history that enter a stream.
        max_item_tokens: tokens of an item sentence that are kept.
        device: where to put it.
        relations: of the items, for a model with a prior.
        exclude_seen: as of the model's training.

    Raises:
        BadInput: if the backbone cannot be loaded or the tensors do not fit.
    """
    backbone = load_backbone(config.backbone.name, config.backbone.revision)
    tokens = encode_items(backbone.tokenizer, sentences, max_item_tokens)
    prompt = backbone.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    model = _model(config, backbone, n_users, len(sentences), state, relations)
    packer = StreamPacker(tokens.values, tokens.offsets, prompt)
    return TrainedModel(
        model.to(device), packer, max_items, device, counter=_counter(config, relations), exclude_seen=exclude_seen
    )


def _counter(config: ModelConfig, relations: Relations | None) -> PriorCounter | None:
    return None if config.prior is None or relations is None else PriorCounter(relations, config.prior)


def _model(
    config: ModelConfig,
    backbone: LoadedBackbone,
    n_users: int,
    n_items: int,
    state: dict[str, Tensor],
    relations: Relations | None,
) -> DARec:
    frequency = None if relations is None else relations.frequency
    if frequency is not None and len(frequency) != n_items:
        raise BadInput(f"the relations are of {len(frequency)} items, the model has {n_items}")
    try:
        model = DARec(backbone.model, config, n_users, n_items, counts=frequency)
        model.load_trained_state(state)
    except ValueError as error:
        raise BadInput(f"the trained tensors do not fit the model ({error})") from error
    return model.eval()
