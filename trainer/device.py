"""Where to compute."""

from __future__ import annotations

import torch


def default_device() -> str:
    """CUDA when there is some."""
    return "cuda" if torch.cuda.is_available() else "cpu"
