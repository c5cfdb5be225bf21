"""`torch.compile` where it pays, and the function as it is where it does not work."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


@functools.cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function compiled for any number of rows; once it fails to compile it runs uncompiled from there on.

    Compiled code is kept with the function, so that the layers of a model and the runs of a process share it.
    """
    fast: Callable[P, R] = torch.compile(function, dynamic=True)
    chosen = [fast]

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return chosen[0](*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning("%s runs uncompiled, as it cannot be compiled here (%s)", function.__qualname__, reason)
            chosen[0] = function
            return function(*args, **kwargs)

    return run
