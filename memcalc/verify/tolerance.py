"""How large a difference may be: bytes, or a share of what was measured."""

from __future__ import annotations

from memcalc.errors import InputError
from memcalc.records import dataclass
from memcalc.units import parse_bytes, parse_fraction


@dataclass(frozen=True, slots=True)
class Tolerance:
    """``nbytes`` and ``share`` of the measured bytes, whichever is more."""

    nbytes: int = 0
    share: float = 0.0

    def allows(self, difference: int, measured: int) -> bool:
        """Whether a difference is small enough."""
        return abs(difference) <= max(self.nbytes, self.share * measured)

    def __str__(self) -> str:
        return f"{100 * self.share:g}%" if self.share else f"{self.nbytes} B"


EXACT = Tolerance()
"""Not one byte."""


def parse_tolerance(text: str, path: str = "--tolerance") -> Tolerance:
    """A tolerance from ``0``, ``512B``, ``1MiB`` or ``1%``.

    Raises:
        InputError: none of these.

    >>> parse_tolerance("0"), parse_tolerance("1%"), parse_tolerance("512B")
    (Tolerance(nbytes=0, share=0.0), Tolerance(nbytes=0, share=0.01), Tolerance(nbytes=512, share=0.0))
    """
    if text.strip() in ("0", "0B", "0%"):
        return Tolerance()
    if text.strip().endswith("%"):
        return Tolerance(share=parse_fraction(text, path))
    try:
        return Tolerance(nbytes=parse_bytes(text, path))
    except InputError as error:
        raise InputError(path, text, error.rule, "write it as 0, 512B, 1MiB or 1%") from None
