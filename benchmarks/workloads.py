"""What the trainer's benchmarks run on: Amazon Scientific or random users of a size, and a random OPT backbone."""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import ByteLevelBPETokenizer
from transformers import OPTConfig, OPTModel

from trainer.config import ModelConfig
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.data.ragged import Ragged
from trainer.models.backbones.opt import OPTBackbone
from trainer.models.darec import DARec
from trainer.models.streams import PROMPT, StreamPacker

DATA = Path(os.environ.get("DAREC_SEARCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MAX_ITEMS, MAX_ITEM_TOKENS, VOCABULARY = 50, 30, 4096


@dataclass(frozen=True, eq=False)
class Workload:
    """Users to be ranked and the items' tokens."""

    name: str
    histories: Ragged
    targets: NDArray[np.int32]
    tokens: Ragged
    prompt: list[int]

    @property
    def packer(self) -> StreamPacker:
        return StreamPacker(self.tokens.values, self.tokens.offsets, self.prompt)

    def take(self, users: NDArray[np.int64]) -> Workload:
        """Some of the users."""
        return Workload(self.name, self.histories.take(users), self.targets[users], self.tokens, self.prompt)


def scientific() -> Workload:
    """Amazon Scientific's validation users; random users of the same size where the data are not at hand."""
    if not (DATA / "scientific").is_dir():
        print(
            f"no Amazon Scientific in {DATA}: random users of its size instead (DAREC_SEARCH_DATA names another folder)"
        )
        return random_users("scientific-sized", 8442, 4385, 5.04)
    with tempfile.TemporaryDirectory() as folder:
        prepare("table", DATA / "scientific", Path(folder) / "data")
        dataset = Dataset.open(Path(folder) / "data")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(dataset.sentences, vocab_size=VOCABULARY, show_progress=False)
    tokens = [tokenizer.encode(sentence).ids[:MAX_ITEM_TOKENS] for sentence in dataset.sentences]
    prompt = tokenizer.encode(PROMPT).ids
    return Workload("scientific", dataset.train, dataset.validation, Ragged.from_rows(tokens), prompt)


def random_users(name: str, users: int, items: int, mean_length: float) -> Workload:
    """Histories of geometric length, from 2, over items of 30 random tokens each."""
    rng = np.random.default_rng(0)
    lengths = 1 + rng.geometric(1 / (mean_length - 1), users)
    histories = Ragged.from_lengths(rng.integers(0, items, lengths.sum()), lengths)
    tokens = Ragged.from_lengths(rng.integers(3, VOCABULARY, items * MAX_ITEM_TOKENS), [MAX_ITEM_TOKENS] * items)
    return Workload(name, histories, rng.integers(0, items, users).astype(np.int32), tokens, list(range(3, 11)))


def random_opt(layers: int, hidden: int, heads: int, vocabulary: int = VOCABULARY) -> OPTModel:
    """An OPT decoder with random weights."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * hidden,
        max_position_embeddings=2048,
        dropout=0.0,
    )
    return OPTModel(config).eval()


def random_darec(opt: OPTModel, workload: Workload) -> tuple[DARec, ModelConfig]:
    """DARec over it, serial and parallel adapters in turn, with random trained tensors; `opt` stays as it is."""
    bits = "-".join(("SPS", "PSP")[layer % 2] for layer in range(opt.config.num_hidden_layers))
    config = ModelConfig(architecture=bits)
    backbone = OPTBackbone(copy.deepcopy(opt))
    model = DARec(backbone, config, len(workload.histories), len(workload.tokens)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return model, config


def dataset_folder() -> Path:
    """A prepared dataset: Amazon Scientific, or a synthetic catalogue of its size where it is not at hand."""
    source = DATA / "scientific"
    name = "scientific" if source.is_dir() else "scientific-sized"
    folder = Path(tempfile.gettempdir()) / "darec-search-benchmarks" / name
    if not folder.exists():
        if source.is_dir():
            prepare("table", source, folder)
        else:
            print(f"no Amazon Scientific in {DATA}: a synthetic catalogue of its size instead")
            prepare("synthetic", None, folder, users=8442, items=4385)
    return folder
