"""Backbones by Hugging Face model type. A new family is one file and one line in `FAMILIES`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from trainer.errors import BadInput
from trainer.models.backbones.base import Backbone

FAMILIES = {"opt": "trainer.models.backbones.opt"}
"""Model type to the module that holds `MODEL` (the Hugging Face class) and `BACKBONE` (the adaption of it)."""


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with what belongs to it."""

    model: Backbone
    tokenizer: Any
    name: str
    revision: str | None


def layer_count(name: str, revision: str | None = None) -> int:
    """Decoder layers of a model folder or hub id, read from its config alone.

    Raises:
        BadInput: if it is no model of a known family.
    """
    return int(_config(name, revision).num_hidden_layers)


def position_count(name: str, revision: str | None = None) -> int:
    """Positions that a model folder or hub id knows, read from its config alone.

    Raises:
        BadInput: if it is no model of a known family.
    """
    return int(_config(name, revision).max_position_embeddings)


def load_backbone(name: str, revision: str | None = None) -> LoadedBackbone:
    """Load a frozen backbone and its tokenizer from a local folder or a Hugging Face id.

    Raises:
        BadInput: if it is no model of a known family, or its weights or tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    config = _config(name, revision)
    family = import_module(FAMILIES[config.model_type])
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = family.MODEL.from_pretrained(name, revision=revision, dtype="float32", use_safetensors=_safe_only(name))
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"model.backbone.name: {name!r} cannot be loaded ({_first_line(error)})") from error
    return LoadedBackbone(family.BACKBONE(model), tokenizer, name, getattr(config, "_commit_hash", None) or revision)


def _safe_only(name: str) -> bool | None:
    # A folder could have been handed to the user: only safetensors are read from it. Hub ids go through Hugging Face's
    # own loader, which reads older weight files with `weights_only=True`.
    return True if Path(name).is_dir() else None


def _config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not Path(name).expanduser().is_dir():
        raise BadInput(f"model.backbone.name: folder {name!r} does not exist")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        kind = "is no model folder" if Path(name).is_dir() else "is neither a model folder nor a reachable hub id"
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise BadInput(f"model.backbone.name: {name!r} {kind}{offline} ({_first_line(error)})") from error
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise BadInput(f"model.backbone.name: {name!r} is a {config.model_type!r} model; known families: {known}")
    return config


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def is_local(name: str) -> bool:
    """Whether a backbone's name is a folder rather than a hub id."""
    return Path(name).is_dir()
