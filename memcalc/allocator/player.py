"""One replay of a recorded history: the allocator's device, which answers as the recorded one did, and the comparison."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from memcalc.allocator.blocks import FREE, Block
from memcalc.allocator.caching import CachingAllocator, Statistics
from memcalc.allocator.expandable import lowest_room
from memcalc.allocator.segments import best_fit
from memcalc.allocator.settings import SMALL, AllocatorSettings
from memcalc.records import dataclass

STRIDE = 2**48
"""Between the addresses given to two recorded ones: more than any segment, and than an expandable segment's addresses."""
GIVES_BACK = ("segment_free", "segment_unmap")
GETS = ("segment_alloc", "segment_map")
COUNTERS = ("requested", "allocated", "active", "reserved", "inactive_split")


class Row(NamedTuple):
    """One recorded event. ``address`` need only be in the right order, ``stream`` likewise."""

    action: str
    address: int
    size: int
    stream: int
    phase: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the model first departs from the record: the event's number in it, what it has, and what the model did."""

    event: int
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class PhaseCounts:
    """The counters over one phase, as ``Phase`` of a measurement has them."""

    phase: str
    start: Statistics
    end: Statistics
    peak: Statistics


@dataclass(slots=True)
class HistoryReplay:
    """A history, replayed.

    Attributes:
        matched: how many events agree, from the first on.
        difference: the first that does not; None where all do.
        allocated: bytes after each event that was matched.
        reserved: likewise; equal to the record's own sum.
        phases: the counters over each phase, in order.
        peaks: the counters' highest points over all of it.
    """

    matched: int
    difference: Difference | None
    allocated: array[int]
    reserved: array[int]
    phases: list[PhaseCounts]
    peaks: Statistics


class _Departure(Exception):  # noqa: N818 - it ends a replay and is no error
    """The model did something else."""


class Player:
    """One replay. It is the allocator's device as well, and answers as the recorded one did."""

    def __init__(self, rows: list[Row], settings: AllocatorSettings | None, total: int | None) -> None:
        self.rows = rows
        self.at = 0
        self.allocator = CachingAllocator(settings, total=total, device=self)
        self.allocator.on_segment = self._segment
        order = sorted({row.address for row in rows})
        self.place = {address: number * STRIDE for number, address in enumerate(order, 1)}
        self.spare = (len(order) + 1) * STRIDE
        self.bound: dict[int, int] = {}
        self.held: dict[int, Block] = {}
        self.allocated, self.reserved = array("q"), array("q")
        self.phases: list[tuple[str, Statistics, Statistics]] = []
        self.high = Statistics(0, 0, 0, 0, 0)

    def play(self) -> HistoryReplay:
        """All of it, or up to the first difference."""
        difference, allocator = None, self.allocator
        phases: list[PhaseCounts] = []
        label, start = self.rows[0].phase if self.rows else "", allocator.statistics()
        try:
            while self.at < len(self.rows):
                if self.rows[self.at].phase != label:
                    phases.append(self._closed(label, start))
                    label, start = self.rows[self.at].phase, allocator.statistics()
                self._event(self.rows[self.at])
        except _Departure as departure:
            said = _said(self.rows[self.at]) if self.at < len(self.rows) else "nothing more"
            difference = Difference(self.at, said, str(departure))
        phases.append(self._closed(label, start))
        matched = [phase for phase in phases if phase.phase not in ("", "before")]
        return HistoryReplay(self.at, difference, self.allocated, self.reserved, matched, self.high)

    def _closed(self, label: str, start: Statistics) -> PhaseCounts:
        peaks = self.allocator.peaks()
        self.high = Statistics(*(max(getattr(self.high, name), getattr(peaks, name)) for name in COUNTERS))
        self.allocator.reset_peaks()
        return PhaseCounts(label, start, self.allocator.statistics(), peaks)

    def _event(self, row: Row) -> None:
        if row.action == "free_requested":
            following = self.rows[self.at + 1] if self.at + 1 < len(self.rows) else None
            block = self._block(row)
            if following is not None and following.action == "free_completed" and following.address == row.address:
                # nobody else used it: what lies between the two events is no state of its own
                self.allocator.allocated -= block.size
                self._next()
                self.allocator.allocated += block.size
                self.allocator.free(self.held.pop(row.address))
            else:
                self.allocator.request_free(block)
            self._next()
        elif row.action == "free_completed":
            self.allocator.complete_free(self._block(row))
            del self.held[row.address]
            self._next()
        elif row.action in (*GETS, *GIVES_BACK, "alloc", "oom"):
            self._request(row)
        else:
            self._next()  # annotations and the like

    def _request(self, row: Row) -> None:
        """A request, with the segments that come and go for it, or an emptying of the cache."""
        ahead = self.at
        while ahead < len(self.rows) and self.rows[ahead].action in (*GETS, *GIVES_BACK):
            ahead += 1
        wanted = self.rows[ahead] if ahead < len(self.rows) else None
        asks = wanted is not None and wanted.action in ("alloc", "oom")
        if row.action in GIVES_BACK and (wanted is None or not asks or self._emptied() or self._cached(wanted)):
            before = self.at
            self.allocator.empty_cache()
            if self.at == before:
                raise _Departure("has nothing to give back")
            return
        if wanted is None or not asks:
            raise _Departure("asks for no segment")
        block = self.allocator.malloc(wanted.size, wanted.stream)
        row = self.rows[self.at]
        if block is None:
            if row.action != "oom":
                raise _Departure("runs out of memory")
        else:
            if row.action != "alloc":
                raise _Departure(f"hands out {wanted.size} bytes")
            self._bind(row.address, block.address, f"hands out {wanted.size} bytes at another place")
            self.held[row.address] = block
        self._next()

    def _emptied(self) -> bool:
        """Whether the record goes on with giving back all that can be: if that was for a request, the state is the same."""
        whole = [
            (block.size, block.address)
            for small in (False, True)
            for pool in self.allocator.all_pools(small)
            for block in pool.blocks
            if not block.split
        ]
        following = self.rows[self.at : self.at + len(whole)]
        return (
            bool(whole) and [(row.size, self.place[row.address]) for row in following if row.action == "segment_free"] == whole
        )

    def _cached(self, wanted: Row) -> bool:
        """Whether a request could be met without giving anything back."""
        allocator = self.allocator
        size = allocator.rounded(wanted.size)
        pools = allocator.pools.get(wanted.stream)
        if pools is None:
            return False
        pool = pools[size > SMALL]
        searches = pool.kind.searches
        found = best_fit(allocator, pool, size) < len(pool.keys)
        pool.kind.searches = searches
        if not found and allocator.expandable:
            # a block too large for a small request is taken all the same where it begins the lowest stretch with room
            first = lowest_room(pool, size)
            found = first is not None and first.state == FREE and first.size >= size
        return found

    def _block(self, row: Row) -> Block:
        block = self.held.get(row.address)
        if block is None:
            raise _Departure("has no such block, which was allocated before recording began")
        if block.requested != row.size:
            raise _Departure(f"has {block.requested} bytes there")
        return block

    def _bind(self, recorded: int, ours: int, otherwise: str) -> None:
        """One recorded address is one of ours, for as long as its segment is there."""
        if self.bound.setdefault(recorded, ours) != ours:
            raise _Departure(otherwise)

    def _next(self) -> None:
        self.at += 1
        self.allocated.append(self.allocator.allocated)
        self.reserved.append(self.allocator.reserved)

    def _segment(self, action: str, address: int, size: int, stream: int) -> None:
        """The model's segments come and go as the recorded ones."""
        said = f"{action} of {size} bytes"
        row = self.rows[self.at] if self.at < len(self.rows) else None
        if row is None or (row.action, row.size, row.stream) != (action, size, stream):
            raise _Departure(said)
        self._bind(row.address, address, f"{said} at another place")
        if action in GIVES_BACK:
            inside = [theirs for theirs, ours in self.bound.items() if address <= ours < address + size]
            for theirs in inside:
                del self.bound[theirs]
        self._next()

    # the device

    @property
    def free(self) -> int | None:
        """Not known."""
        return None

    def allocate(self, size: int) -> int | None:
        """Room, unless the record goes on with giving back or with running out."""
        if self.at >= len(self.rows) or self.rows[self.at].action in (*GIVES_BACK, "oom"):
            return None
        return self.place[self.rows[self.at].address]

    def release(self, address: int, size: int) -> None:
        """Nothing to note."""

    def reserve(self, size: int) -> int:
        """Where the record's next pages lie."""
        if self.at < len(self.rows) and self.rows[self.at].action == "segment_map":
            return self.place[self.rows[self.at].address]
        self.spare += STRIDE
        return self.spare

    def map(self, address: int, size: int) -> bool:
        """Pages, unless the record goes on with giving back or with running out."""
        return self.allocate(size) is not None

    def unmap(self, address: int, size: int) -> None:
        """Nothing to note."""


def _said(row: Row) -> str:
    return f"{row.action} of {row.size} bytes"
