"""The highest points of each phase of a tape, played through the allocator, and nothing else.

``replay`` notes after every event what it changed, so that any instant can be asked for. Where only the phases' highest points
are wanted, that is most of the work. Here the same program runs over the same lists of free blocks, bare: one loop, the
counters in local variables, no record of the way. It knows the allocator as it is without settings; with any, ``replay`` plays.

A body that is repeated, and gives back in each turn all that it takes, is played until a turn has asked the device for no
segment. From there on each turn finds what the one before found: which bytes are free follows from the segments and from the
blocks that live, because neighbours that are free are always joined.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import index as as_int
from typing import Any

from memcalc.allocator.blocks import BASE, SHIFT, TOP
from memcalc.allocator.segments import segment_size
from memcalc.allocator.settings import LARGE_SEGMENT, SMALL, AllocatorSettings
from memcalc.arrays import BLOCK
from memcalc.tape.events import PHASES, Alloc, Event, Mark, Phase, Repeat
from memcalc.tape.unroll import unroll

MASK = BLOCK - 1
Summits = dict[tuple[int, Phase], dict[str, int]]
"""By (iteration, phase): ``requested``, ``allocated`` and ``reserved`` at their highest, each at its own instant."""
Op = tuple[int, list[Any]]
"""(bytes to be had, where the block goes), or (-1 less the younger ones that stay, where the block is)."""


class Piece:
    """A piece of a segment, as :class:`memcalc.allocator.blocks.Block` is."""

    __slots__ = ("address", "after", "before", "free", "key", "need", "pool", "size")

    address: int
    size: int
    need: int
    key: int
    free: bool
    before: Piece | None
    after: Piece | None
    pool: Pool


Pool = tuple[list[int], list[Piece], int]
"""Free pieces' keys in order, the pieces, and the remainder up to which one is handed out whole."""


def summits(tape: Iterable[Event], settings: AllocatorSettings | None = None) -> Summits:
    """What ``replay(tape, settings).phases()`` says of requested, allocated and reserved bytes; without settings, in a fraction
    of the time.

    >>> from memcalc.tape.events import Buffer, Free
    >>> weight, scratch = Buffer("w", 3 * 2**20, "parameter"), Buffer("s", 1000, "temporary")
    >>> summits([Mark("forward"), Alloc(weight), Repeat(9, (Alloc(scratch), Free(scratch)))])
    {(2, 'forward'): {'requested': 3146728, 'allocated': 3146752, 'reserved': 23068672}}
    """
    events = list(tape)
    if settings is not None and settings != AllocatorSettings():
        return _replayed(events, settings)
    try:
        return _Run().play(events)
    except (_NotPlainError, IndexError):  # equal buffers that are not one, other streams: what the full replay knows
        return _replayed(events, None)


def _replayed(events: Sequence[Event], settings: AllocatorSettings | None) -> Summits:
    from memcalc.allocator.replay import replay

    return {
        place: {name: peaks[name] for name in ("requested", "allocated", "reserved")}
        for place, peaks in replay(events, settings).phases().items()
    }


def lives_in(tape: Iterable[Event], capacity: int, *, descending: bool = False) -> bool:
    """Whether the allocator can play a tape within so many bytes: ``replay(tape, capacity=capacity).out_of_memory is None``."""
    events = list(tape)
    try:
        _Run(capacity, descending).play(events)
    except _OutOfMemoryError:
        return False
    except (_NotPlainError, IndexError):
        from memcalc.allocator.replay import replay

        return replay(events, capacity=capacity, descending=descending).out_of_memory is None
    return True


class _OutOfMemoryError(Exception):
    """A request that the device has no room for."""


class _NotPlainError(Exception):
    """A tape that the bare loop does not play."""


class _Run:
    """One tape's way through the allocator."""

    def __init__(self, capacity: int | None = None, descending: bool = False) -> None:
        self.capacity, self.descending = capacity, descending
        self.asked = 0
        self.stacks: dict[int, list[Any]] = {}
        self.next = BASE
        self.reserved = self.allocated = self.requested = 0
        self.tops = [0, 0, 0]
        self.small: Pool = ([], [], 0)
        self.large: Pool = ([], [], SMALL)
        self.spare: list[Piece] = []

    def play(self, events: Sequence[Event]) -> Summits:
        """Phase by phase."""
        found: Summits = {}
        first = next((event for event in events if event.__class__ is Mark), None)
        place = (2 if first is None else first.iteration, PHASES[0])
        ops: list[Op] = []
        for number, event in enumerate(events):
            kind = event.__class__
            if kind is Mark:
                self.go(ops)
                ops = []
                if number:
                    self.close(found, place)
                place = event.iteration, event.phase  # type: ignore[union-attr]
            elif kind is Repeat:
                ops = self.repeated(event, ops)  # type: ignore[arg-type]
            else:
                self.leaf(event, ops)
        self.go(ops)
        self.close(found, place)
        return found

    def close(self, found: Summits, place: tuple[int, Phase]) -> None:
        """A phase ends, and the next begins at what is held now."""
        row = found.setdefault(place, {"requested": 0, "allocated": 0, "reserved": 0})
        for name, top in zip(row, self.tops, strict=True):
            row[name] = max(row[name], top)
        self.tops = [self.requested, self.allocated, self.reserved]

    def leaf(self, event: Any, ops: list[Op]) -> None:
        """A birth or a death, as the loop takes it; what takes no memory of the device's is left out."""
        buffer = event.buffer
        requested = buffer.requested if buffer.requested.__class__ is int else as_int(buffer.requested)
        if buffer.place != "device" or not requested:
            return
        if buffer.stream or requested < 0:
            raise _NotPlainError
        stack = self.stacks.get(id(buffer))
        if stack is None:
            stack = self.stacks[id(buffer)] = []
        ops.append((requested, stack) if event.__class__ is Alloc else (-1 - event.below, stack))

    def repeated(self, event: Repeat, ops: list[Op]) -> list[Op]:
        """A body so many times over; gives what is still to be played."""
        written: Any = event.times
        if getattr(written, "ndim", 0) or written < 0:
            raise _NotPlainError  # which the full replay refuses in its own words
        times = as_int(written)
        turn: list[Op] = []
        for one in unroll(event.body):
            if one.__class__ is Mark:
                raise _NotPlainError
            self.leaf(one, turn)
        if times < 2 or len(turn) < 2 or not _gives_all_back(turn):
            ops.extend(turn * times)
            return ops
        self.go(ops)
        for _ in range(times):
            asked = self.asked
            self.go(turn)
            if self.asked == asked:
                break
        return []

    def go(self, ops: Sequence[Op]) -> None:  # noqa: C901, PLR0915 - one loop, a call a branch would cost
        """Births and deaths, as :class:`memcalc.allocator.caching.CachingAllocator` has them (``malloc``, ``free``)."""
        small, large, spare = self.small, self.large, self.spare
        requested, allocated = self.requested, self.allocated
        top_requested, top_allocated, _ = self.tops
        for need, stack in ops:
            if need > 0:
                size = (need + MASK) & ~MASK
                pool = large if size > SMALL else small
                keys, pieces, keeps = pool
                at = bisect_left(keys, size << SHIFT)
                if at == len(keys):
                    fresh = self.segment(size, pool)
                    at = len(keys)
                    keys.append(0)
                    pieces.append(fresh)
                piece = pieces[at]
                left = piece.size - size
                if left > keeps:
                    piece.size = size
                    after = piece.after
                    rest = spare.pop() if spare else Piece()
                    rest.address, rest.size, rest.pool, rest.free = piece.address + size, left, pool, True
                    rest.before, rest.after = piece, after
                    rest.key = key = (left << SHIFT) + rest.address
                    piece.after = rest
                    if after is not None:
                        after.before = rest
                    if at and keys[at - 1] > key:
                        del keys[at], pieces[at]
                        at = bisect_left(keys, key, 0, at)
                        keys.insert(at, key)
                        pieces.insert(at, rest)
                    else:
                        keys[at], pieces[at] = key, rest
                else:
                    del keys[at], pieces[at]
                    size = piece.size
                piece.free = False
                piece.need = need
                stack.append(piece)
                allocated += size
                if allocated > top_allocated:
                    top_allocated = allocated
                requested += need
                if requested > top_requested:
                    top_requested = requested
                continue
            piece = stack.pop(need)
            size = piece.size
            allocated -= size
            requested -= piece.need
            keys, pieces, _ = piece.pool
            before, after = piece.before, piece.after
            if before is not None and before.free:
                at = bisect_left(keys, before.key)
                del keys[at], pieces[at]
                size += before.size
                piece.address = before.address
                piece.before = further = before.before
                if further is not None:
                    further.after = piece
                spare.append(before)
            if after is not None and after.free:
                at = bisect_left(keys, after.key)
                del keys[at], pieces[at]
                size += after.size
                piece.after = further = after.after
                if further is not None:
                    further.before = piece
                spare.append(after)
            piece.size, piece.free = size, True
            piece.key = key = (size << SHIFT) + piece.address
            at = bisect_left(keys, key)
            keys.insert(at, key)
            pieces.insert(at, piece)
        self.requested, self.allocated = requested, allocated
        self.tops[:2] = top_requested, top_allocated

    def segment(self, size: int, pool: Pool) -> Piece:
        """A new one from the device, above all others or below them, after giving back what must be.

        Raises:
            _OutOfMemoryError: there is no room.
        """
        self.asked += 1
        piece = Piece()
        piece.size = length = segment_size(size, LARGE_SEGMENT)
        if self.capacity is not None and self.reserved + length > self.capacity:
            self.release()
            if self.reserved + length > self.capacity:
                raise _OutOfMemoryError
        piece.address, piece.pool = TOP - self.next - length if self.descending else self.next, pool
        piece.before = piece.after = None
        self.next += length
        self.reserved += length
        self.tops[2] = max(self.tops[2], self.reserved)
        return piece

    def release(self) -> None:
        """Every free segment goes back (``memcalc.allocator.segments.release_cached``)."""
        for keys, pieces, _ in (self.small, self.large):
            whole = [piece.before is None and piece.after is None for piece in pieces]
            self.reserved -= sum(piece.size for piece, goes in zip(pieces, whole, strict=True) if goes)
            keys[:] = [key for key, goes in zip(keys, whole, strict=True) if not goes]
            pieces[:] = [piece for piece, goes in zip(pieces, whole, strict=True) if not goes]


def _gives_all_back(turn: Sequence[Op]) -> bool:
    """Whether a body lets go of whatever it makes, the youngest of equals first, and of nothing else."""
    live: dict[int, int] = {}
    for need, stack in turn:
        held = live.get(id(stack), 0) + (1 if need > 0 else -1)
        if held < 0 or need < -1:
            return False
        live[id(stack)] = held
    return not any(live.values())
