"""The bare loop of ``memcalc.allocator.summits`` once more, over numbers in arrays, for numba to compile.

A piece of a segment is a row of eight numbers: a line of a cache. Nothing of the allocator's numbers is written here, for numba
looks at this file alone when it asks whether what it has compiled is still true: they come with the sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numba

Array: TypeAlias = Any
"""An array of int64."""
_F = TypeVar("_F", bound=Callable[..., Any])

NEED, ROUNDED, SEGMENT = range(3)
"""Of a buffer: the bytes it needs, its block's, and those of a segment that is asked for because of it."""
SIZE, ADDRESS, REQUEST, BEFORE, AFTER, LARGE, FREE, OLDER, COLUMNS = range(9)
"""What is known of a piece, as ``memcalc.allocator.summits.Piece`` has it, and the next older piece of the same buffer."""
REQUESTED, ALLOCATED, RESERVED, TOP_REQUESTED, TOP_ALLOCATED, TOP_RESERVED = range(6)
"""What is counted, in bytes, and the highest of each since a phase began."""
MADE, SPARE, SEGMENTS, NEXT, CAPACITY, DESCENDING, SMALL, COUNTED = range(6, 14)
"""What a run goes by: rows that have been used, and those of them that are free to be used again; segments so far, and where
the next begins; bytes there are for segments; whether these lie below the earlier ones; the largest size of small segments."""
NONE = -1
PLAYED, NOT_PLAIN, OUT_OF_MEMORY, FULL = range(4)
"""How a run ends; FULL where it had too few rows."""
HIGHEST = 2**62
"""The end of all addresses: ``memcalc.allocator.blocks.TOP`` is none of int64."""


def _jit(function: _F) -> _F:
    try:
        return numba.njit(cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # there is no folder to keep it in
        return numba.njit(function)  # type: ignore[no-any-return]


# Places are told by two indices all along: a row of its own is counted by reference, which takes longer than the rest.


@_jit
def _find(pieces: Array, free: Array, large: int, size: int, address: int) -> int:
    """The place of the first free piece that is no smaller, or of equal size and no lower."""
    low, high = 0, free[large, 0]
    while low < high:
        middle = (low + high) // 2
        piece = free[large, middle + 1]
        found = pieces[piece, SIZE]
        if found < size or (found == size and pieces[piece, ADDRESS] < address):
            low = middle + 1
        else:
            high = middle
    return low + 1


@_jit
def _insert(pieces: Array, free: Array, piece: int) -> None:
    """A piece becomes free."""
    pieces[piece, FREE] = 1
    large = pieces[piece, LARGE]
    at = _find(pieces, free, large, pieces[piece, SIZE], pieces[piece, ADDRESS])
    free[large, 0] += 1
    for place in range(free[large, 0], at, -1):
        free[large, place] = free[large, place - 1]
    free[large, at] = piece


@_jit
def _remove(free: Array, large: int, at: int) -> None:
    """A piece is free no more."""
    for place in range(at, free[large, 0]):
        free[large, place] = free[large, place + 1]
    free[large, 0] -= 1


@_jit
def _row(spare: Array, counted: Array) -> int:
    """A row that is not used."""
    if counted[SPARE]:
        counted[SPARE] -= 1
        return spare[counted[SPARE]]  # type: ignore[no-any-return]
    counted[MADE] += 1
    return counted[MADE] - 1  # type: ignore[no-any-return]


@_jit
def _release(pieces: Array, free: Array, spare: Array, counted: Array) -> None:
    """Every free segment goes back (``memcalc.allocator.segments.release_cached``)."""
    for large in range(2):
        kept = 0
        for place in range(1, free[large, 0] + 1):
            piece = free[large, place]
            if pieces[piece, BEFORE] == NONE and pieces[piece, AFTER] == NONE:
                counted[RESERVED] -= pieces[piece, SIZE]
                spare[counted[SPARE]] = piece
                counted[SPARE] += 1
            else:
                kept += 1
                free[large, kept] = piece
        free[large, 0] = kept


@_jit
def _segment(pieces: Array, free: Array, spare: Array, counted: Array, large: int, length: int) -> bool:
    """A new segment, above all others or below them, after giving back what must be; false where there is no room."""
    if counted[CAPACITY] != NONE and counted[RESERVED] + length > counted[CAPACITY]:
        _release(pieces, free, spare, counted)
        if counted[RESERVED] + length > counted[CAPACITY]:
            return False
    piece = _row(spare, counted)
    pieces[piece, SIZE], pieces[piece, LARGE] = length, large
    pieces[piece, BEFORE], pieces[piece, AFTER] = NONE, NONE
    pieces[piece, ADDRESS] = HIGHEST - counted[NEXT] - length if counted[DESCENDING] else counted[NEXT]
    counted[NEXT] += length
    counted[SEGMENTS] += 1
    counted[RESERVED] += length
    counted[TOP_RESERVED] = max(counted[TOP_RESERVED], counted[RESERVED])
    _insert(pieces, free, piece)
    return True


@_jit
def _birth(pieces: Array, free: Array, spare: Array, counted: Array, needs: Array, buffer: int) -> int:
    """A block is handed out (``memcalc.allocator.caching.CachingAllocator.malloc``); no piece where there is no room."""
    need, size = needs[buffer, NEED], needs[buffer, ROUNDED]
    large = 1 if size > counted[SMALL] else 0
    at = _find(pieces, free, large, size, 0)
    if at > free[large, 0]:
        if not _segment(pieces, free, spare, counted, large, needs[buffer, SEGMENT]):
            return NONE
        at = _find(pieces, free, large, size, 0)
    piece = free[large, at]
    _remove(free, large, at)
    left = pieces[piece, SIZE] - size
    if left > (counted[SMALL] if large else 0):
        rest, after = _row(spare, counted), pieces[piece, AFTER]
        pieces[rest, SIZE], pieces[rest, ADDRESS], pieces[rest, LARGE] = left, pieces[piece, ADDRESS] + size, large
        pieces[rest, BEFORE], pieces[rest, AFTER] = piece, after
        if after != NONE:
            pieces[after, BEFORE] = rest
        pieces[piece, SIZE], pieces[piece, AFTER] = size, rest
        _insert(pieces, free, rest)
    pieces[piece, FREE], pieces[piece, REQUEST] = 0, need
    counted[ALLOCATED] += pieces[piece, SIZE]
    counted[REQUESTED] += need
    counted[TOP_ALLOCATED] = max(counted[TOP_ALLOCATED], counted[ALLOCATED])
    counted[TOP_REQUESTED] = max(counted[TOP_REQUESTED], counted[REQUESTED])
    return piece  # type: ignore[no-any-return]


@_jit
def _death(pieces: Array, free: Array, spare: Array, counted: Array, piece: int) -> None:
    """A block is given back, and joined with what is free on either side (``CachingAllocator.free``)."""
    counted[ALLOCATED] -= pieces[piece, SIZE]
    counted[REQUESTED] -= pieces[piece, REQUEST]
    for side in (BEFORE, AFTER):
        other = pieces[piece, side]
        if other == NONE or not pieces[other, FREE]:
            continue
        large = pieces[piece, LARGE]
        _remove(free, large, _find(pieces, free, large, pieces[other, SIZE], pieces[other, ADDRESS]))
        pieces[piece, SIZE] += pieces[other, SIZE]
        pieces[piece, ADDRESS] = min(pieces[piece, ADDRESS], pieces[other, ADDRESS])
        further = pieces[other, side]
        pieces[piece, side] = further
        if further != NONE:
            pieces[further, BEFORE + AFTER - side] = piece
        spare[counted[SPARE]] = other
        counted[SPARE] += 1
    _insert(pieces, free, piece)


@_jit
def _take(pieces: Array, youngest: Array, buffer: int, below: int) -> int:
    """A buffer's piece of which so many younger ones stay; none where there are not so many."""
    piece, above = youngest[buffer], NONE
    for _ in range(below):
        if piece == NONE:
            return NONE
        piece, above = pieces[piece, OLDER], piece
    if piece == NONE:
        return NONE
    if above == NONE:
        youngest[buffer] = pieces[piece, OLDER]
    else:
        pieces[above, OLDER] = pieces[piece, OLDER]
    return piece  # type: ignore[no-any-return]


@_jit
def _turn(
    pieces: Array, free: Array, spare: Array, counted: Array, ops: Array, first: int, last: int, needs: Array, youngest: Array
) -> int:
    """Events in a row."""
    for place in range(first, last):
        buffer, below = ops[place, 0], ops[place, 1]
        if needs[buffer, NEED] == 0:
            continue
        if below >= 0:
            piece = _take(pieces, youngest, buffer, below)
            if piece == NONE:
                return NOT_PLAIN
            _death(pieces, free, spare, counted, piece)
            continue
        if counted[MADE] + 2 > len(pieces) and counted[SPARE] < 2:
            return FULL
        piece = _birth(pieces, free, spare, counted, needs, buffer)
        if piece == NONE:
            return OUT_OF_MEMORY
        pieces[piece, OLDER] = youngest[buffer]
        youngest[buffer] = piece
    return PLAYED


@_jit
def run(
    pieces: Array, free: Array, spare: Array, counted: Array, ops: Array, turns: Array, times: Array, needs: Array,
    youngest: Array, tops: Array,
) -> int:  # fmt: skip
    """All turns of all phases; their highest points go to ``tops``."""
    free[0, 0] = free[1, 0] = phase = 0  # a list begins with how many it has
    for number in range(len(turns)):
        while phase < turns[number, 3]:
            _close(counted, tops, phase)
            phase += 1
        for _ in range(times[number]):
            asked = counted[SEGMENTS]
            ended = _turn(pieces, free, spare, counted, ops, turns[number, 0], turns[number, 1], needs, youngest)
            if ended != PLAYED:
                return ended
            if turns[number, 2] and counted[SEGMENTS] == asked:
                break
    while phase < len(tops):
        _close(counted, tops, phase)
        phase += 1
    return PLAYED


@_jit
def _close(counted: Array, tops: Array, phase: int) -> None:
    """A phase ends, and the next begins at what is held now."""
    for measure in range(3):
        tops[phase, measure] = counted[TOP_REQUESTED + measure]
        counted[TOP_REQUESTED + measure] = counted[REQUESTED + measure]
