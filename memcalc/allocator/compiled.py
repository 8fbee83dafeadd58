"""The bare loop of ``memcalc.allocator.summits`` once more, over numbers in arrays, for numba to compile.

It plays a tape in a tenth of the time. numba takes half a second to load, and some four to compile this file the first time; it
keeps the result beside the file, or in the user's cache. A piece of a segment is a row of eight numbers: a line of a cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import numba
import numpy as np

from memcalc.allocator import segments
from memcalc.allocator.blocks import BASE
from memcalc.allocator.program import BIRTH, Numbered, Program
from memcalc.allocator.settings import LARGE_SEGMENT, SMALL
from memcalc.arrays import BLOCK
from memcalc.records import dataclass

Array: TypeAlias = Any
"""An array of int64."""
_F = TypeVar("_F", bound=Callable[..., Any])

SIZE, ADDRESS, NEED, BEFORE, AFTER, LARGE, FREE, OLDER, COLUMNS = range(9)
"""What is known of a piece, as ``memcalc.allocator.summits.Piece`` has it, and the next older piece of the same buffer."""
(
    REQUESTED,
    ALLOCATED,
    RESERVED,
    TOP_REQUESTED,
    TOP_ALLOCATED,
    TOP_RESERVED,
    MADE,
    SPARE,
    NEXT,
    SEGMENTS,
    CAPACITY,
    DESCENDING,
) = range(12)
"""What is counted. ``MADE`` are the rows that have been used, ``SPARE`` those of them that are free to be used again."""
COUNTED = 12
NONE = -1
PLAYED, NOT_PLAIN, OUT_OF_MEMORY, FULL = range(4)
"""How a run ends; FULL where it had too few rows."""
ROWS = 4096
"""Rows of a first run."""
HIGHEST = 2**62
"""The end of all addresses: ``memcalc.allocator.blocks.TOP`` is none of int64."""
WIDE = HIGHEST // 4
"""Bytes that all births may come to, their segments included, for addresses to stay below it."""


def _jit(function: _F) -> _F:
    try:
        return numba.njit(cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # there is no folder to keep it in
        return numba.njit(function)  # type: ignore[no-any-return]


_segment_size = numba.njit(segments.segment_size)

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
def _segment(pieces: Array, free: Array, spare: Array, counted: Array, size: int) -> bool:
    """A new segment, above all others or below them, after giving back what must be; false where there is no room."""
    length = _segment_size(size, LARGE_SEGMENT)
    if counted[CAPACITY] != NONE and counted[RESERVED] + length > counted[CAPACITY]:
        _release(pieces, free, spare, counted)
        if counted[RESERVED] + length > counted[CAPACITY]:
            return False
    piece = _row(spare, counted)
    pieces[piece, SIZE], pieces[piece, LARGE] = length, 1 if size > SMALL else 0
    pieces[piece, BEFORE], pieces[piece, AFTER] = NONE, NONE
    pieces[piece, ADDRESS] = HIGHEST - counted[NEXT] - length if counted[DESCENDING] else counted[NEXT]
    counted[NEXT] += length
    counted[SEGMENTS] += 1
    counted[RESERVED] += length
    counted[TOP_RESERVED] = max(counted[TOP_RESERVED], counted[RESERVED])
    _insert(pieces, free, piece)
    return True


@_jit
def _birth(pieces: Array, free: Array, spare: Array, counted: Array, need: int) -> int:
    """A block is handed out (``memcalc.allocator.caching.CachingAllocator.malloc``); no piece where there is no room."""
    size = (need + BLOCK - 1) // BLOCK * BLOCK
    large = 1 if size > SMALL else 0
    at = _find(pieces, free, large, size, 0)
    if at > free[large, 0]:
        if not _segment(pieces, free, spare, counted, size):
            return NONE
        at = _find(pieces, free, large, size, 0)
    piece = free[large, at]
    _remove(free, large, at)
    left = pieces[piece, SIZE] - size
    if left > (SMALL if large else 0):
        rest, after = _row(spare, counted), pieces[piece, AFTER]
        pieces[rest, SIZE], pieces[rest, ADDRESS], pieces[rest, LARGE] = left, pieces[piece, ADDRESS] + size, large
        pieces[rest, BEFORE], pieces[rest, AFTER] = piece, after
        if after != NONE:
            pieces[after, BEFORE] = rest
        pieces[piece, SIZE], pieces[piece, AFTER] = size, rest
        _insert(pieces, free, rest)
    pieces[piece, FREE], pieces[piece, NEED] = 0, need
    counted[ALLOCATED] += pieces[piece, SIZE]
    counted[REQUESTED] += need
    counted[TOP_ALLOCATED] = max(counted[TOP_ALLOCATED], counted[ALLOCATED])
    counted[TOP_REQUESTED] = max(counted[TOP_REQUESTED], counted[REQUESTED])
    return piece  # type: ignore[no-any-return]


@_jit
def _death(pieces: Array, free: Array, spare: Array, counted: Array, piece: int) -> None:
    """A block is given back, and joined with what is free on either side (``CachingAllocator.free``)."""
    counted[ALLOCATED] -= pieces[piece, SIZE]
    counted[REQUESTED] -= pieces[piece, NEED]
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
        if needs[buffer] == 0:
            continue
        if below != BIRTH:
            piece = _take(pieces, youngest, buffer, below)
            if piece == NONE:
                return NOT_PLAIN
            _death(pieces, free, spare, counted, piece)
            continue
        if counted[MADE] + 2 > len(pieces) and counted[SPARE] < 2:
            return FULL
        piece = _birth(pieces, free, spare, counted, needs[buffer])
        if piece == NONE:
            return OUT_OF_MEMORY
        pieces[piece, OLDER] = youngest[buffer]
        youngest[buffer] = piece
    return PLAYED


@_jit
def _run(
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


@dataclass(slots=True)
class Arrays:
    """A program as the loop takes it.

    Attributes:
        ops: (buffer, birth or which death) of each event.
        turns: (first event, past the last, whether it settles, phase) of each turn.
        rows: pieces there is room for.
    """

    ops: Array
    turns: Array
    rows: int = ROWS


def ready() -> ModuleType:
    """This module, compiled."""
    play(Numbered.of([]), None, descending=False)
    return sys.modules[__name__]


def play(numbered: Numbered, capacity: int | None, *, descending: bool) -> tuple[int, list[list[int]]] | None:
    """How a tape's run ends, and the highest points of each phase: requested, allocated and reserved bytes.

    None where numbers are too large for int64: a run in Python knows no end of them.
    """
    program = numbered.program
    if program.compiled is None:
        program.compiled = _arrays(program)
    known: Arrays = program.compiled
    births = sum(times * len(turn.ops) for times, turn in zip(numbered.times, program.turns(), strict=True))
    longest = max(numbered.needs, default=0) + LARGE_SEGMENT
    if births * longest > WIDE or (capacity is not None and not 0 <= capacity < HIGHEST):
        return None
    needs, times = (np.array(one, dtype=np.int64) for one in (numbered.needs, numbered.times))
    tops = np.zeros((len(program.phases), 3), dtype=np.int64)
    while True:
        counted = np.zeros(COUNTED, dtype=np.int64)
        counted[NEXT], counted[CAPACITY], counted[DESCENDING] = BASE, NONE if capacity is None else capacity, descending
        youngest = np.full(len(needs), NONE)
        ended = _run(*_rows(known.rows), counted, known.ops, known.turns, times, needs, youngest, tops)
        if ended != FULL:
            return ended, tops.tolist()
        known.rows *= 4


@lru_cache(maxsize=1)
def _rows(rows: int) -> tuple[Array, Array, Array]:
    """Room for pieces, for the lists of free ones and for spare rows: a run leaves nothing in it that another looks at.

    One is kept, for a new one costs a run of the loop in page faults. No two runs are in it at once: the loop holds the
    interpreter's lock.
    """
    empty = np.empty
    return empty((rows, COLUMNS), np.int64), empty((2, rows + 1), np.int64), empty(rows, np.int64)


def _arrays(program: Program) -> Arrays:
    ops: list[tuple[int, int]] = []
    turns = []
    for number, (_, listed) in enumerate(program.phases):
        for turn in listed:
            turns.append((len(ops), len(ops) + len(turn.ops), turn.settles, number))
            ops += turn.ops
    return Arrays(np.array(ops, dtype=np.int64).reshape(-1, 2), np.array(turns, dtype=np.int64).reshape(-1, 4))
