"""Deterministic mode for the time of one run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Let torch refuse operations whose result may differ from run to run, in this block only.

    What was set before is restored, since a lane's process runs other trials afterwards. cuBLAS is deterministic only
    with a fixed workspace, which torch asks for by an environment variable.
    """
    if not enabled:
        yield
        return
    was_on, was_warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warning)
        if workspace is None:
            del os.environ[_WORKSPACE]
