"""How far a predicted peak may be off, from recorded and published errors; and whether a step lives in so much memory.

``recorded.json`` lists, for each run that was both measured and predicted, both figures (``python -m benchmarks.bounds`` writes
it). What counts is the ratio of measured to predicted. Of n ratios drawn alike, the largest is an upper bound for a share b of
all with a confidence of 1 - b**n, whatever they are distributed like (Wilks 1941, one-sided tolerance limits from order
statistics); the smallest likewise from below. A group of fewer than twenty says too little, and all of the engine's runs
together stand in for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.device_total import FEW, device_total
from memcalc.footprint import Footprint
from memcalc.records import dataclass, replace
from memcalc.tape.events import Event

if TYPE_CHECKING:
    from memcalc.allocator.settings import AllocatorSettings

FILE = Path(__file__).with_name("recorded.json")
CONFIDENCE = 0.95
"""With which the share is stated."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One run, measured and predicted.

    Attributes:
        id: the record's own.
        engine: who predicted it.
        family: the model's.
        implementation: whose code the run trained.
        metric: what was counted.
        predicted: bytes.
        measured: bytes.
        halfwidth: bytes by which the measured figure may have been rounded.
    """

    id: str
    engine: str
    family: str
    implementation: str
    metric: str
    predicted: int
    measured: int
    halfwidth: int


@dataclass(frozen=True, slots=True)
class Interval:
    """The ratio of measured to predicted, as it was seen.

    Attributes:
        low: the smallest ratio.
        high: the largest.
        n: runs it rests on.
        pooled: whether these are all of the engine's, the family having too few.
        own: runs of the family itself.
        implementations: whose code these runs trained.
    """

    low: Fraction
    high: Fraction
    n: int
    pooled: bool
    own: int
    implementations: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share of runs like these that stay below ``high``, with :data:`CONFIDENCE`.

        >>> round(Interval(Fraction(1), Fraction(1), 24, True, 0, ()).share, 3)
        0.883
        """
        return float((1 - CONFIDENCE) ** (1 / self.n))

    def told(self, family: str) -> str:
        """What it rests on, in one sentence."""
        mine = f", {self.own or 'none'} of them {family}" if self.pooled else f" of {family}"
        return (
            f"peak.low and peak.high are {float(self.low):.3f} and {float(self.high):.3f} times the prediction, the range of "
            f"{self.n} published runs (of {', '.join(self.implementations)}{mine}); of runs like these {self.share:.0%} "
            f"stay below, with {CONFIDENCE:.0%} confidence"
        )


def interval(engine: str, family: str, metric: str = "allocated", *, of: Iterable[Recorded] | None = None) -> Interval | None:
    """How far an engine's prediction of a family may be off; None where nothing was recorded, or too little of everything.

    Args:
        engine: ``trace`` or ``analytic``.
        family: as a footprint has it.
        metric: the figure of ``peak``.
        of: the records, those that ship by default.

    >>> found = interval("trace", "llama")
    >>> found.n >= 20, found.low < 1 < found.high, interval("trace", "llama", "reserved")
    (True, True, None)
    """
    return _of_shipped(engine, family, metric) if of is None else _of(of, engine, family, metric)


@lru_cache(maxsize=256)
def _of_shipped(engine: str, family: str, metric: str) -> Interval | None:
    return _of(recorded(), engine, family, metric)


def _of(records: Iterable[Recorded], engine: str, family: str, metric: str) -> Interval | None:
    every = [one for one in records if (one.engine, one.metric) == (engine, metric)]
    own = [one for one in every if one.family == family]
    pooled = len(own) < FEW
    chosen = every if pooled else own
    if len(chosen) < FEW:
        return None
    return Interval(
        low=min(Fraction(one.measured - one.halfwidth, one.predicted) for one in chosen),
        high=max(Fraction(one.measured + one.halfwidth, one.predicted) for one in chosen),
        n=len(chosen), pooled=pooled, own=len(own), implementations=tuple(sorted({one.implementation for one in chosen})),
    )  # fmt: skip


@lru_cache(maxsize=1)
def recorded() -> tuple[Recorded, ...]:
    """The records that ship."""
    listed: Mapping[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(Recorded(*row) for row in listed["rows"])


def bounded(footprint: Footprint) -> Footprint:
    """The footprint with the bounds of its peak, and with what the device holds beside the allocator's memory.

    Every engine that knows ``peak.allocated`` and ``peak.reserved`` ends with this. What is not known stays null: no bound of
    the allocated peak without records, no device total without a reserved figure.
    """
    peak = footprint.peak
    found = None if peak.allocated is None else interval(footprint.engine, footprint.model.family)
    if found is not None and peak.allocated is not None:
        least, states = int(peak.allocated * found.low), footprint.states.rounded
        if states <= peak.allocated:  # what is kept is known to the byte; a traced step of one's own may keep less
            least = max(least, states)
        peak = replace(peak, low=least, high=-int(-peak.allocated * found.high // 1))
        told, mode = found.told(footprint.model.family), footprint.job.get("mode", "train")
        if mode != "train":
            told = f"{told}; they are training steps, for none in mode {mode} is recorded"
        footprint = replace(footprint, assumptions=(*footprint.assumptions, told))
    if peak.reserved is None:
        return replace(footprint, peak=peak)
    total = device_total(footprint.job, peak.reserved)
    exact = total.low if total.low == total.high else None
    peak = replace(peak, device=exact, device_low=total.low, device_high=total.high)
    return replace(footprint, peak=peak, outside=total.lines)


def lives_in(tape: Iterable[Event], capacity: int, settings: AllocatorSettings | None = None) -> bool:
    """Whether a step can be played with so many bytes for the allocator.

    The allocator gives cached blocks back and asks again before it fails, so that what it reserves where there is room says
    little of what it needs; playing the step where there is none does. What cudaMalloc answers is not known, and both orders
    of addresses have to go through.

    >>> from memcalc.tape.events import Alloc, Buffer, Free
    >>> first, second = Buffer("a", 30 * 2**20, "activation"), Buffer("b", 40 * 2**20, "activation")
    >>> tape = [Alloc(first), Free(first), Alloc(second)]      # reserves 70 MiB where there is room, and needs 40
    >>> lives_in(tape, 40 * 2**20), lives_in(tape, 39 * 2**20)
    (True, False)
    """
    from memcalc.allocator.program import Numbered
    from memcalc.allocator.replay import replay
    from memcalc.allocator.settings import AllocatorSettings
    from memcalc.allocator.summits import lives_in as plainly_lives_in

    events = tape if isinstance(tape, Numbered) else list(tape)
    if capacity < 0:
        return False
    if settings is None or settings == AllocatorSettings():
        return all(plainly_lives_in(events, capacity, descending=descending) for descending in (False, True))
    return all(replay(events, settings, capacity, descending=descending).out_of_memory is None for descending in (False, True))
