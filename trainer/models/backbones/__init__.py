"""Backbones by Hugging Face model type. A new family is one file and one line in `FAMILIES`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import BadInput, NotHere
from trainer.models.backbones.base import Backbone
from trainer.models.backbones.bert import BertBackbone
from trainer.models.backbones.gpt2 import GPT2Backbone
from trainer.models.backbones.llama import LlamaBackbone
from trainer.models.backbones.opt import OPTBackbone
from trainer.models.backbones.qwen import QwenBackbone
from trainer.models.backbones.roberta import RobertaBackbone

Family = type[BertBackbone] | type[GPT2Backbone] | type[LlamaBackbone] | type[OPTBackbone]

FAMILIES: dict[str, Family] = {
    "bert": BertBackbone,
    "gpt2": GPT2Backbone,
    "llama": LlamaBackbone,
    "opt": OPTBackbone,
    "qwen2": QwenBackbone,
    "qwen3": QwenBackbone,
    "roberta": RobertaBackbone,
}


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with what belongs to it."""

    model: Backbone
    tokenizer: Any
    name: str
    revision: str | None


def layer_count(name: str, revision: str | None = None) -> int:
    """Layers of a model folder or hub id, read from its config alone.

    Raises:
        BadInput: if it is no model of a known family.
        NotHere: if it is an id of a hub that does not answer.
    """
    return int(_find(name, revision).config.num_hidden_layers)


def position_count(name: str, revision: str | None = None) -> int:
    """Positions that a stream may have with a model folder or hub id, read from its config alone.

    Raises:
        BadInput: if it is no model of a known family.
    """
    return _find(name, revision).positions


def load_backbone(name: str, revision: str | None = None) -> LoadedBackbone:
    """Load a frozen backbone and its tokenizer from a local folder or a Hugging Face id.

    Raises:
        BadInput: if it is no model of a known family, or its weights or tokenizer cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    found = _find(name, revision)
    options = {"revision": found.commit or revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model, report = AutoModel.from_pretrained(
            name, **options, dtype="float32", use_safetensors=_safe_only(name), output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"model.backbone.name: {name!r} cannot be loaded ({_first_line(error)})") from error
    # A pooler is not used here. Any other missing weight would be a random one.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise BadInput(f"model.backbone.name: {name!r} lacks weights ({missing[0]}); save the whole model again")
    return LoadedBackbone(found.family(model), tokenizer, name, found.commit)


def _safe_only(name: str) -> bool | None:
    # A folder could have been handed to the user: only safetensors are read from it. Hub ids go through Hugging Face's
    # own loader, which reads older weight files with `weights_only=True`.
    return True if Path(name).is_dir() else None


@dataclass(frozen=True)
class _Found:
    """A model's config, before its weights are read."""

    config: Any
    family: Family
    positions: int
    commit: str | None


def _find(name: str, revision: str | None) -> _Found:
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers import AutoConfig

    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not Path(name).expanduser().is_dir():
        raise BadInput(f"model.backbone.name: folder {name!r} does not exist")
    try:
        commit = _commit(name, revision)
        config = AutoConfig.from_pretrained(name, revision=commit or revision)
    except (OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise NotHere(
                f"model.backbone.name: {name!r} is no local folder, and the Hugging Face hub cannot be reached{offline}"
                "; connect, or name a model folder"
            ) from error
        kind = "is no model folder" if Path(name).is_dir() else "is neither a model folder nor a hub id"
        raise BadInput(f"model.backbone.name: {name!r} {kind}{offline} ({_first_line(error)})") from error
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise BadInput(f"model.backbone.name: {name!r} is a {config.model_type!r} model; known families: {known}")
    family = FAMILIES[config.model_type]
    return _Found(config, family, family.positions(config), commit)


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a hub id's revision stands for now; None for a folder."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    return None if is_local(name) else extract_commit_hash(cached_file(name, "config.json", revision=revision), None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def is_local(name: str) -> bool:
    """Whether a backbone's name is a folder rather than a hub id."""
    return Path(name).is_dir()
