"""Tapes played by the bare loop as numba has compiled it (``memcalc.allocator.loop``): that loop in a fifth of the time.

numba takes half a second to load, and some six to compile the loop the first time; it keeps the result beside the file, or in
the user's cache, and compiles anew in every process where it may write neither.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeAlias

import numba
import numpy as np

from memcalc.allocator.blocks import BASE
from memcalc.allocator.loop import (
    CAPACITY,
    COLUMNS,
    COUNTED,
    DESCENDING,
    FULL,
    HIGHEST,
    NEXT,
    NONE,
    NOT_PLAIN,
    OUT_OF_MEMORY,
    PLAYED,
    SMALL,
    run,
)  # fmt: skip
from memcalc.allocator.program import Numbered, Program
from memcalc.allocator.segments import segment_size
from memcalc.allocator.settings import LARGE_SEGMENT
from memcalc.allocator.settings import SMALL as SMALL_SIZE
from memcalc.arrays import rounded
from memcalc.records import dataclass

__all__ = ["FULL", "NOT_PLAIN", "OUT_OF_MEMORY", "PLAYED", "play", "ready"]

Array: TypeAlias = Any
"""An array of int64."""
ROWS = 4096
"""Rows of a first run."""
WIDE = HIGHEST // 4
"""Bytes that all births may come to, their segments included, for addresses to stay below it."""


@dataclass(slots=True)
class Arrays:
    """A program as the loop takes it.

    Attributes:
        ops: (buffer, birth or which death) of each event.
        turns: (first event, past the last, whether it settles, phase) of each turn.
        which: of each buffer, the number of its size.
        rows: pieces there is room for.
    """

    ops: Array
    turns: Array
    which: Array
    rows: int = ROWS


def ready() -> ModuleType:
    """This module, compiled.

    Raises:
        RuntimeError: numba is told not to compile.
    """
    if numba.config.DISABLE_JIT:
        raise RuntimeError("numba is told not to compile (NUMBA_DISABLE_JIT)")
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
    longest = max(numbered.sizes, default=0) + LARGE_SEGMENT
    if births * longest > WIDE or (capacity is not None and not 0 <= capacity < HIGHEST):
        return None
    sizes = [(size, block := int(rounded(size)), segment_size(block, LARGE_SEGMENT)) for size in numbered.sizes]
    needs, times = np.array(sizes, dtype=np.int64).reshape(-1, 3)[known.which], np.array(numbered.times, dtype=np.int64)
    tops = np.zeros((len(program.phases), 3), dtype=np.int64)
    while True:
        counted = np.zeros(COUNTED, dtype=np.int64)
        counted[NEXT], counted[SMALL], counted[DESCENDING] = BASE, SMALL_SIZE, descending
        counted[CAPACITY] = NONE if capacity is None else capacity
        youngest = np.full(len(needs), NONE)
        ended = run(*_rows(known.rows), counted, known.ops, known.turns, times, needs, youngest, tops)
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
    return Arrays(
        np.array(ops, dtype=np.int64).reshape(-1, 2),
        np.array(turns, dtype=np.int64).reshape(-1, 4),
        np.array(program.needs, dtype=np.int64),
    )
