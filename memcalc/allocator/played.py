"""What a replay gives: peaks and where they are, the state after any event, and what was alive then."""

from __future__ import annotations

from array import array
from operator import index as as_int
from typing import Literal, get_args

from memcalc.allocator.blocks import OutOfMemory
from memcalc.allocator.settings import BLOCK, AllocatorSettings
from memcalc.errors import InputError
from memcalc.records import dataclass
from memcalc.tape.events import Alloc, Buffer, Free, Mark, Phase, Role
from memcalc.tape.unroll import Leaf, Pairs

Measure = Literal["requested", "rounded", "allocated", "active", "reserved", "inactive_split"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


@dataclass(frozen=True, slots=True)
class Instant:
    """Where a peak is.

    Attributes:
        bytes: how high.
        event: its place in ``Replay.events``; the state meant is the one after that event.
        phase: the phase it falls in.
        iteration: the iteration it falls in.
        site: of the buffer whose birth or death it is; empty at a mark.
    """

    bytes: int
    event: int
    phase: Phase
    iteration: int
    site: str


@dataclass(frozen=True, slots=True)
class Span:
    """The events from one mark to the next, and each measure's highest point in it: (bytes, event).

    What is held when the phase begins belongs to it, as after ``torch.cuda.reset_peak_memory_stats``.
    """

    phase: Phase
    iteration: int
    start: int
    end: int
    peaks: dict[Measure, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Live:
    """A buffer alive at some instant: since which event, and what its block takes, its unsplit remainder included."""

    buffer: Buffer
    born: int
    rounded: int
    allocated: int


@dataclass(frozen=True, slots=True)
class Holding:
    """What is held at an instant.

    Attributes:
        roles: rounded bytes by role; they sum to ``rounded``.
        rounded: each live buffer rounded up to 512 B.
        remainders: bytes handed out beyond that, because blocks were not split or sizes were rounded up further.
        allocated: ``rounded + remainders``.
        live: the buffers, largest block first.
    """

    roles: dict[Role, int]
    rounded: int
    remainders: int
    allocated: int
    live: list[Live]


@dataclass(slots=True)
class Replay:
    """A tape, played.

    Attributes:
        settings: the allocator's.
        capacity: bytes the device could give; None for no end.
        sizes: bytes that each event added to ``allocated``.
        events: the unrolled tape, up to where memory ran out.
        series: each measure after each event, as arrays of int64.
        spans: the phases in order; a phase met again is another one.
        out_of_memory: the request that could not be met, the last of ``events``; None where all were.
    """

    settings: AllocatorSettings
    events: list[Leaf]
    series: dict[Measure, array[int]]
    spans: list[Span]
    sizes: array[int]
    capacity: int | None = None
    out_of_memory: OutOfMemory | None = None

    def peak(self, measure: Measure = "allocated", phase: Phase | None = None, iteration: int | None = None) -> Instant:
        """The first highest point of a measure, over all of the tape or over some phase or iteration of it.

        Raises:
            InputError: the tape has no such phase or iteration.
        """
        best: tuple[int, int, Span] | None = None
        for span in self.spans:
            if phase in (None, span.phase) and iteration in (None, span.iteration):
                high, event = span.peaks[measure]
                if best is None or high > best[0]:
                    best = high, event, span
        if best is None:
            raise InputError("replay.peak", (phase, iteration), "is no phase of this tape", "ask for one of Replay.phases()")
        high, event, span = best
        leaf = self.events[event] if self.events else None
        site = leaf.buffer.site if isinstance(leaf, Alloc | Free) else ""
        return Instant(high, event, span.phase, span.iteration, site)

    def phases(self) -> dict[tuple[int, Phase], dict[Measure, int]]:
        """Each measure's peak by (iteration, phase), micro-batches together."""
        table: dict[tuple[int, Phase], dict[Measure, int]] = {}
        for span in self.spans:
            row = table.setdefault((span.iteration, span.phase), {})
            for measure, (high, _) in span.peaks.items():
                row[measure] = max(row.get(measure, 0), high)
        return table

    def at(self, event: int) -> Holding:
        """What is held after an event, buffer by buffer."""
        pairs = Pairs[int]()
        for number in range(min(event + 1, len(self.events))):
            leaf = self.events[number]
            if isinstance(leaf, Mark) or leaf.buffer.place != "device" or not leaf.buffer.requested:
                continue
            if isinstance(leaf, Alloc):
                if self.sizes[number]:  # else memory ran out here
                    pairs.add(leaf.buffer, number)
            else:
                pairs.take_below(leaf.buffer, number, leaf.below)
        live = [Live(buffer, born, -(-as_int(buffer.requested) // BLOCK) * BLOCK, self.sizes[born]) for buffer, born in pairs]
        live.sort(key=lambda one: (-one.allocated, one.born))
        roles: dict[Role, int] = {}
        for one in sorted(live, key=lambda one: one.born):
            roles[one.buffer.role] = roles.get(one.buffer.role, 0) + one.rounded
        rounded, allocated = sum(one.rounded for one in live), sum(one.allocated for one in live)
        return Holding(roles, rounded, allocated - rounded, allocated, live)
