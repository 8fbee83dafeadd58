"""A tape as flat arrays: one row for each allocation, and one entry for each allocation or free, in order.

An *instant* is a place in that order: instant ``i`` is the moment just after the ``i``-th allocation or free, counted from 0.
Marks take no instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from memcalc.errors import NO_VALUE, InputError
from memcalc.records import dataclass
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark, Phase, Repeat

if TYPE_CHECKING:
    Ints = np.ndarray[Any, np.dtype[np.int64]]
else:
    Ints = np.ndarray

BEFORE = ("init", 0)
"""The phase and iteration of what comes before a tape's first mark."""


@dataclass(frozen=True, slots=True)
class Stay:
    """A stretch of instants ``start <= i < stop`` that belongs to one phase of one iteration."""

    phase: Phase
    iteration: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Lives:
    """Every allocation of a tape.

    Attributes:
        buffers: what was allocated, in order of birth.
        born: the instant at which each was allocated, int64.
        dies: the instant at which each was freed; the number of instants where it never was.
        events: int64, one for each instant: ``k`` where buffer ``k - 1`` is born, ``-k`` where it dies.
        stays: the phases in order; those in which nothing happens are left out.
        places: int64, where each instant stands among all events of the tape, marks counted too.
        leaves: how many events that are.
    """

    buffers: list[Buffer]
    born: Ints
    dies: Ints
    events: Ints
    stays: tuple[Stay, ...]
    places: Ints
    leaves: int


def read(tape: Iterable[Event]) -> Lives:
    """The lives of a tape's buffers; a repeated body is expanded.

    A free ends the youngest life of the very same object, or of an equal buffer where that object is not alive.

    Raises:
        InputError: the tape allocates nothing, or frees what is not alive.

    >>> from memcalc.tape.events import Buffer
    >>> a, b = Buffer("a", 100, "parameter"), Buffer("b", 100, "activation")
    >>> lives = read([Alloc(a), Mark("forward", 2), Alloc(b), Free(b)])
    >>> lives.events.tolist(), lives.born.tolist(), lives.dies.tolist()
    ([1, 2, -2], [0, 1], [3, 2])
    >>> [(stay.phase, stay.start, stay.stop) for stay in lives.stays]
    [('init', 0, 1), ('forward', 1, 3)]
    """
    buffers: list[Buffer] = []
    events: list[int] = []
    marks: list[tuple[Phase, int, int]] = [(BEFORE[0], BEFORE[1], 0)]  # type: ignore[list-item]
    alive: dict[int, list[int]] = {}
    places: list[int] = []
    for event in _flat(tape):
        if isinstance(event, Alloc):
            buffers.append(event.buffer)
            alive.setdefault(id(event.buffer), []).append(len(buffers))
            events.append(len(buffers))
        elif isinstance(event, Free):
            living = alive.get(id(event.buffer)) or _equal(event.buffer, alive, buffers)
            if not living:
                rule = f"is freed at instant {len(events)} and is not alive then"
                raise InputError("tape", event.buffer.site, rule, "free what was allocated, once")
            events.append(-living.pop())
        else:
            marks.append((event.phase, event.iteration, len(events)))
            continue
        places.append(len(events) + len(marks) - 2)
    if not buffers:
        raise InputError("tape", NO_VALUE, "holds no allocation, so there is nothing to draw", "trace a step that runs")
    return _arrays(buffers, events, marks, places)


def _arrays(buffers: list[Buffer], events: list[int], marks: list[tuple[Phase, int, int]], places: list[int]) -> Lives:
    order = np.array(events, dtype=np.int64)
    born, dies = (np.full(len(buffers), len(events), dtype=np.int64) for _ in range(2))
    births, deaths = np.flatnonzero(order > 0), np.flatnonzero(order < 0)
    born[order[births] - 1] = births
    dies[-order[deaths] - 1] = deaths
    stays = tuple(_stays(marks, len(events)))
    # the first mark is no event of the tape: it stands for its beginning
    return Lives(buffers, born, dies, order, stays, np.array(places, dtype=np.int64), len(events) + len(marks) - 1)


def _equal(sought: Buffer, alive: dict[int, list[int]], buffers: list[Buffer]) -> list[int] | None:
    """The living of an equal buffer, the youngest of them last; None where there is none."""
    equal = [living for living in alive.values() if living and buffers[living[-1] - 1] == sought]
    return max(equal, key=lambda living: living[-1], default=None)


def _flat(tape: Iterable[Event]) -> Iterator[Alloc | Free | Mark]:
    for event in tape:
        if isinstance(event, Repeat):
            assert isinstance(event.times, int), "the tape of one job, not of many"
            for _ in range(event.times):
                yield from _flat(event.body)
        else:
            yield event


def _stays(marks: list[tuple[Phase, int, int]], end: int) -> Iterator[Stay]:
    """What lies between marks; two in a row of one phase and iteration are one stretch."""
    held: Stay | None = None
    for (phase, iteration, start), stop in zip(marks, [*(mark[2] for mark in marks[1:]), end], strict=True):
        if start == stop:
            continue
        if held is not None and (held.phase, held.iteration) == (phase, iteration):
            start, held = held.start, None
        if held is not None:
            yield held
        held = Stay(phase, iteration, start, stop)
    if held is not None:
        yield held
