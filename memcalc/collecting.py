"""How often Python looks for garbage: seldom while a command answers, and as in anybody's script while a step is measured."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

USUAL = gc.get_threshold()
"""The interpreter's own thresholds, which differ from one Python to the next."""


def seldom() -> None:
    """Look for garbage hardly ever.

    Hardly anything in a command is in cycles, and what is imported stays for good: looking through it for garbage, again and
    again and once more at the end, is a tenth of a cold start.
    """
    gc.set_threshold(100_000, 10, 10)


@contextlib.contextmanager
def as_usual() -> Iterator[None]:
    """Within it garbage is looked for as often as Python does by itself: tensors in cycles live as long as they would.

    >>> with as_usual():
    ...     gc.get_threshold() == USUAL
    True
    """
    before = gc.get_threshold()
    gc.set_threshold(*USUAL)
    try:
        yield
    finally:
        gc.set_threshold(*before)
