"""What a check finds: what is wrong, and what is right but not on this machine yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from trainer.errors import BadInput, NotHere

T = TypeVar("T")


@dataclass
class Findings:
    """Collects problems, so that all of them are told at once."""

    problems: list[str] = field(default_factory=list)
    """What is wrong, one sentence each."""
    missing: list[str] = field(default_factory=list)
    """What is right but not on this machine yet, one sentence each."""

    def collect(self, attempt: Callable[[], T]) -> T | None:
        """The outcome of an attempt, or None with its problem noted, each only once."""
        try:
            return attempt()
        except BadInput as error:
            noted = self.missing if isinstance(error, NotHere) else self.problems
            if str(error) not in noted:
                noted.append(str(error))
            return None

    def refuse(self, *, missing: bool = True) -> None:
        """End here if there is a problem or, unless told otherwise, if something is missing.

        Raises:
            BadInput: with all of them, one line each.
        """
        lines = self.problems + (self.missing if missing else [])
        if lines:
            raise BadInput("\n  ".join(lines))
