"""The trained tensors of a run as safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import BadInput


def save_model(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors by name, atomically."""
    temporary = path.with_name(f".{path.name}.writing")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
    temporary.replace(path)


def load_model(path: Path) -> dict[str, Tensor]:
    """Read what `save_model` wrote.

    Raises:
        BadInput: if the file is absent or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: the trained tensors cannot be read ({error})") from error
