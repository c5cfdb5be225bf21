"""Faults that cannot be sent to a process from outside; on PYTHONPATH, every Python process of a study loads this.

DAREC_FAULTS names a folder. A file `hang`, `nan` or `oom` in it befalls the first training that comes to its next step,
which takes the file away. A file `clock` says by how many seconds the wall clock is wrong from now on.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_LOOP = "trainer.training.loop"


class Faults(MetaPathFinder, Loader):
    """Loads the training loop as it is, then lays the faults around its losses.

    Args:
        folder: where the faults lie in wait.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: Loader | None = None

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Steps in for one module."""
        spec = PathFinder.find_spec(name, path, target) if name == _LOOP else None
        if spec is not None:
            self._found, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As ever."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """The module's own code first."""
        assert self._found is not None
        self._found.exec_module(module)
        losses = module.Training._losses

        def with_faults(training: Any, part: Any) -> dict[str, Any]:
            found: dict[str, Any] = losses(training, part)
            if self._befalls("hang"):
                time.sleep(1e6)
            if self._befalls("oom"):
                import torch

                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. (injected)")
            if self._befalls("nan"):
                found["total"] = found["total"] * float("nan")
            return found

        module.Training._losses = with_faults

    def _befalls(self, fault: str) -> bool:
        """Whether this process, of all that look, takes it."""
        try:
            (self._folder / fault).rename(self._folder / f"{fault}-taken-{os.getpid()}")
        except OSError:
            return False
        return True


def _wrong_clock(folder: Path) -> None:
    right = time.time

    def wrong() -> float:
        try:
            return right() + float((folder / "clock").read_text())
        except (OSError, ValueError):
            return right()

    time.time = wrong


if "DAREC_FAULTS" in os.environ:
    _place = Path(os.environ["DAREC_FAULTS"])
    sys.meta_path.insert(0, Faults(_place))
    _wrong_clock(_place)
