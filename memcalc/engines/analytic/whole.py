"""A job, answered by the analytic engine."""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.footprint import Footprint
from memcalc.records import dataclass
from memcalc.tape.events import Event


@dataclass
class Whole:
    """A job, answered.

    Attributes:
        footprint: what it takes.
        tape: two iterations, where the step was played; None where only what is kept is known.
    """

    footprint: Footprint
    tape: Iterable[Event] | None = None
