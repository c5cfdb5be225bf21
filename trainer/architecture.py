"""An adapter architecture: three bits for each DALayer (Section 2.3.3 of the DARec paper).

A bit is 0 for a serial and 1 for a parallel adapter. The three slots of a layer are, in this order everywhere:
the causal relation adapter, the context relation adapter, the recommendation adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SLOTS = ("causal", "context", "recommendation")
Kind = Literal["serial", "parallel"]
FIXED_ARMS: tuple[Kind, ...] = ("serial", "parallel")
"""The uniform architectures, which every study compares with."""
_LETTERS = "SP"


@dataclass(frozen=True)
class Architecture:
    """The adapters of L DALayers.

    Args:
        bits: 3L values in {0, 1}, layer by layer, slots in the order of `SLOTS`.

    Raises:
        ValueError: if the number of bits is no positive multiple of three or a bit is neither 0 nor 1.
    """

    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.bits or len(self.bits) % len(SLOTS):
            raise ValueError(f"an architecture has {len(SLOTS)} bits per DALayer, got {len(self.bits)} bits")
        if any(bit not in (0, 1) for bit in self.bits):
            raise ValueError(f"every bit is 0 (serial) or 1 (parallel), got {self.bits}")

    @classmethod
    def uniform(cls, layers: int, kind: Kind) -> Architecture:
        """All adapters of one kind."""
        return cls((int(kind == "parallel"),) * (layers * len(SLOTS)))

    @classmethod
    def parse(cls, text: str, layers: int) -> Architecture:
        """Read `serial`, `parallel` or the text form, one `SPS`-like group a DALayer joined by `-`.

        Raises:
            ValueError: if the text is none of these or names another number of layers.
        """
        if text == "serial":
            return cls.uniform(layers, "serial")
        if text == "parallel":
            return cls.uniform(layers, "parallel")
        groups = text.upper().split("-")
        if any(len(group) != len(SLOTS) or set(group) - set(_LETTERS) for group in groups):
            raise ValueError(
                f"architecture {text!r}: write 'serial', 'parallel' or one group of three letters S or P per DALayer, "
                "such as 'SPS-PPS' (causal, context, recommendation adapter)"
            )
        if len(groups) != layers:
            raise ValueError(f"architecture {text!r} describes {len(groups)} DALayers, the model has {layers}")
        return cls(tuple(_LETTERS.index(letter) for group in groups for letter in group))

    @property
    def layers(self) -> int:
        """Number of DALayers L."""
        return len(self.bits) // len(SLOTS)

    @property
    def text(self) -> str:
        """One group of three letters per DALayer, S serial and P parallel, such as `SPS-PPS`."""
        letters = "".join(_LETTERS[bit] for bit in self.bits)
        return "-".join(letters[i : i + len(SLOTS)] for i in range(0, len(letters), len(SLOTS)))

    def layer(self, index: int) -> dict[str, Kind]:
        """The kinds of one DALayer's adapters by slot name."""
        bits: Sequence[int] = self.bits[index * len(SLOTS) : (index + 1) * len(SLOTS)]
        return {slot: "parallel" if bit else "serial" for slot, bit in zip(SLOTS, bits, strict=True)}
