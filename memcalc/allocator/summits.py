"""The highest points of each phase of a tape, played through the allocator, and nothing else.

``replay`` notes after every event what it changed, so that any instant can be asked for. Where only the phases' highest points
are wanted, that is most of the work. Here the same program runs over the same lists of free blocks, bare: one loop, the
counters in local variables, no record of the way. It knows the allocator as it is without settings; with any, ``replay`` plays.

A body that is repeated, and gives back in each turn all that it takes, is played until a turn has asked the device for no
segment. From there on each turn finds what the one before found: which bytes are free follows from the segments and from the
blocks that live, because neighbours that are free are always joined.

A process that has played :data:`PATIENCE` tapes has ``memcalc.allocator.compiled`` play further ones, where numba is installed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from memcalc.allocator.blocks import BASE, SHIFT, TOP
from memcalc.allocator.program import BIRTH, NotPlainError, Numbered, Place, Turn
from memcalc.allocator.segments import segment_size
from memcalc.allocator.settings import LARGE_SEGMENT, SMALL, AllocatorSettings
from memcalc.arrays import BLOCK
from memcalc.tape.events import Event

MASK = BLOCK - 1
Summits = dict[Place, dict[str, int]]
"""By (iteration, phase): ``requested``, ``allocated`` and ``reserved`` at their highest, each at its own instant."""
Step = tuple[int, list[Any]]
"""(bytes to be had, where the block goes), or (-1 less the younger ones that stay, where the block is)."""
PATIENCE = 20
"""Tapes that are played in Python before the compiled loop is loaded, which takes as long as some fifty of a large model."""


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

    >>> from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat
    >>> weight, scratch = Buffer("w", 3 * 2**20, "parameter"), Buffer("s", 1000, "temporary")
    >>> summits([Mark("forward"), Alloc(weight), Repeat(9, (Alloc(scratch), Free(scratch)))])
    {(2, 'forward'): {'requested': 3146728, 'allocated': 3146752, 'reserved': 23068672}}
    """
    tape = tape if isinstance(tape, Numbered) else list(tape)
    if settings is None or settings == AllocatorSettings():
        try:
            numbered = Numbered.of(tape)
            return _told(_played(numbered), numbered)
        except (NotPlainError, IndexError):  # equal buffers that are not one, other streams: what the full replay knows
            pass
    from memcalc.allocator.replay import replay

    return {
        place: {name: peaks[name] for name in ("requested", "allocated", "reserved")}
        for place, peaks in replay(tape, settings).phases().items()
    }


def lives_in(tape: Iterable[Event], capacity: int, *, descending: bool = False) -> bool:
    """Whether the allocator can play a tape within so many bytes: ``replay(tape, capacity=capacity).out_of_memory is None``."""
    tape = tape if isinstance(tape, Numbered) else list(tape)
    try:
        _played(Numbered.of(tape), capacity, descending)
    except _OutOfMemoryError:
        return False
    except (NotPlainError, IndexError):
        from memcalc.allocator.replay import replay

        return replay(tape, capacity=capacity, descending=descending).out_of_memory is None
    return True


class _OutOfMemoryError(Exception):
    """A request that the device has no room for."""


def _played(numbered: Numbered, capacity: int | None = None, descending: bool = False) -> Sequence[Sequence[int]]:
    """The highest points of each phase: requested, allocated and reserved.

    Raises:
        _OutOfMemoryError: there is no room for a request.
        NotPlainError, IndexError: a tape that the bare loops do not play.
    """
    compiled = _Compiled.loaded()
    found = None if compiled is None else compiled.play(numbered, capacity, descending=descending)
    if found is None:
        return _Run(capacity, descending).play(numbered)
    ended, tops = found
    if ended == compiled.OUT_OF_MEMORY:
        raise _OutOfMemoryError
    if ended == compiled.NOT_PLAIN:
        raise NotPlainError
    return tops  # type: ignore[no-any-return]


def _told(tops: Sequence[Sequence[int]], numbered: Numbered) -> Summits:
    """Phases that are met again are one."""
    found: Summits = {}
    for (place, _), highest in zip(numbered.program.phases, tops, strict=True):
        row = found.setdefault(place, {"requested": 0, "allocated": 0, "reserved": 0})
        for name, top in zip(row, highest, strict=True):
            row[name] = max(row[name], top)
    return found


class _Compiled:
    """The compiled loop.

    Attributes:
        module: ``memcalc.allocator.compiled``, once it has been loaded; None before, and where it cannot be.
        played: tapes that this process has played.
        tried: whether it was asked for.
    """

    module: ClassVar[Any] = None
    played: ClassVar[int] = 0
    tried: ClassVar[bool] = False

    @classmethod
    def loaded(cls) -> Any:
        """The module, if this process has played enough for it; None otherwise."""
        cls.played += 1
        if cls.played > PATIENCE and not cls.tried:
            cls.tried = True
            from contextlib import suppress

            with suppress(Exception):  # no numba, or one that does not run here: it may only cost time
                from memcalc.allocator import compiled

                cls.module = compiled.ready()
        return cls.module


class _Run:
    """One tape's way through the allocator."""

    def __init__(self, capacity: int | None = None, descending: bool = False) -> None:
        self.capacity, self.descending = capacity, descending
        self.asked = 0
        self.next = BASE
        self.reserved = self.allocated = self.requested = 0
        self.tops = [0, 0, 0]
        self.small: Pool = ([], [], 0)
        self.large: Pool = ([], [], SMALL)
        self.spare: list[Piece] = []

    def play(self, numbered: Numbered) -> list[list[int]]:
        """Phase by phase; what is held when one begins belongs to it."""
        needs, times = numbered.needs(), iter(numbered.times)
        stacks: list[list[Piece]] = [[] for _ in needs]
        found = []
        for _, turns in numbered.program.phases:
            for turn in turns:
                self.turn(turn, next(times), needs, stacks)
            found.append(self.tops)
            self.tops = [self.requested, self.allocated, self.reserved]
        return found

    def turn(self, turn: Turn, times: int, needs: list[int], stacks: list[list[Piece]]) -> None:
        """Events, so many times over."""
        steps = [
            (need, stacks[buffer]) if below == BIRTH else (-1 - below, stacks[buffer])
            for buffer, below in turn.ops
            if (need := needs[buffer])
        ]
        if not turn.settles:
            self.go(steps * times)
            return
        for _ in range(times):
            asked = self.asked
            self.go(steps)
            if self.asked == asked:
                break

    def go(self, steps: Sequence[Step]) -> None:  # noqa: C901, PLR0915 - one loop, a call a branch would cost
        """Births and deaths, as :class:`memcalc.allocator.caching.CachingAllocator` has them (``malloc``, ``free``)."""
        small, large, spare = self.small, self.large, self.spare
        requested, allocated = self.requested, self.allocated
        top_requested, top_allocated, _ = self.tops
        for need, stack in steps:
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
