"""The tape: the allocations and frees of a training step on one rank, with repetition written once.

A tape is a tree, so that eighty equal layers are one layer and a number. Readers never look at where a buffer came from:
``fold`` adds up stretches, ``unroll`` expands them for an allocator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

from memcalc.arrays import Count
from memcalc.records import dataclass

Role = Literal[
    "parameter", "parameter_copy", "master_parameter", "buffer", "cache", "gradient", "optimizer_state",
    "input", "activation", "temporary", "communication", "workspace", "context",
]  # fmt: skip
ROLES: tuple[Role, ...] = Role.__args__  # type: ignore[attr-defined]
"""What bytes are for, in the order they are shown."""

COMPONENTS: dict[Role, str] = {
    "parameter": "parameters", "parameter_copy": "parameter_copies", "master_parameter": "master_parameters",
    "buffer": "buffers", "cache": "cache", "gradient": "gradients", "optimizer_state": "optimizer_states", "input": "inputs",
    "activation": "activations", "temporary": "temporaries", "communication": "communication",
    "workspace": "workspace", "context": "context",
}  # fmt: skip
"""Each role's name among a footprint's components."""

Phase = Literal["init", "forward", "loss", "backward", "clip", "optimizer_step", "zero_grad"]
PHASES: tuple[Phase, ...] = Phase.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Buffer:
    """One piece of memory.

    Attributes:
        site: what it is, for a reader: a tensor's name, a bucket's, a state's.
        requested: bytes its tensor needs.
        role: what it is for.
        place: ``device``, ``host``, or ``managed`` (pages between them, counted by no allocator).
        stream: the CUDA stream it is allocated on.
        module: dotted path of the module that made it, where a live module was traced.
        operator: what made it, as ``aten.addmm.default``, where it was traced.
        dtype: its tensor's, where it was traced.
        shape: its tensor's, where it was traced.

    Two buffers of a traced tape are the same if they are one object: equal ones may be alive together.
    """

    site: str
    requested: Count
    role: Role
    place: Literal["device", "host", "managed"] = "device"
    stream: int = 0
    module: str = ""
    operator: str = ""
    dtype: str = ""
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Alloc:
    """A buffer is born."""

    buffer: Buffer


@dataclass(frozen=True, slots=True)
class Free:
    """A buffer dies.

    Attributes:
        buffer: which.
        below: of several alive that are this one object, how many younger ones stay: 0 for the youngest.
    """

    buffer: Buffer
    below: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """A phase begins; what follows belongs to it until the next mark."""

    phase: Phase
    iteration: int = 2


@dataclass(frozen=True, slots=True)
class Repeat:
    """The body, ``times`` over; 0 is nothing at all. A body holds no marks."""

    times: Count
    body: tuple[Event, ...]


Event: TypeAlias = Alloc | Free | Mark | Repeat


def allocs(buffer: Buffer, times: Count = 1) -> Event:
    """``times`` buffers alike, born one after another."""
    return _times(times, Alloc(buffer))


def frees(buffer: Buffer, times: Count = 1) -> Event:
    """``times`` buffers alike, dying one after another."""
    return _times(times, Free(buffer))


def within(held: Iterable[tuple[Buffer, Count]], between: Iterable[Event] = ()) -> list[Event]:
    """Buffers that are born, live through ``between`` and die."""
    pairs = list(held)
    return [
        *(allocs(buffer, times) for buffer, times in pairs),
        *between,
        *(frees(buffer, times) for buffer, times in reversed(pairs)),
    ]


def outliving(events: Iterable[Event], role: Role, times: Count = 1) -> list[tuple[Buffer, Count]]:
    """Buffers of a role, each with how many of it there are, that are born among these events and do not die there.

    >>> kept, gone = (Buffer(name, 4, "gradient") for name in ("kept", "gone"))
    >>> [(one.site, count) for one, count in outliving([allocs(kept, 3), Alloc(gone), Free(gone)], "gradient")]
    [('kept', 3)]
    """
    found: dict[int, tuple[Buffer, Count]] = {}
    for event in events:
        if isinstance(event, Repeat):
            for buffer, count in outliving(event.body, role, times * event.times):
                found[id(buffer)] = (buffer, count + found.get(id(buffer), (buffer, 0))[1])
            for buffer in _buried(event.body):
                found.pop(id(buffer), None)
        elif isinstance(event, Alloc) and event.buffer.role == role:
            found[id(event.buffer)] = (event.buffer, times + found.get(id(event.buffer), (event.buffer, 0))[1])
        elif isinstance(event, Free):
            found.pop(id(event.buffer), None)
    return list(found.values())


def _buried(events: Iterable[Event]) -> Iterator[Buffer]:
    for event in events:
        if isinstance(event, Free):
            yield event.buffer
        elif isinstance(event, Repeat):
            yield from _buried(event.body)


def leaf_of(event: Event) -> tuple[Buffer, Count, int] | None:
    """(buffer, how often, +1 or -1) for equal allocations or equal frees in a row; None for anything else."""
    times: Count = 1
    if isinstance(event, Repeat) and len(event.body) == 1:
        times, event = event.times, event.body[0]
    if isinstance(event, Alloc):
        return event.buffer, times, 1
    if isinstance(event, Free):
        return event.buffer, times, -1
    return None


def _times(times: Count, event: Event) -> Event:
    return event if isinstance(times, int) and times == 1 else Repeat(times, (event,))
