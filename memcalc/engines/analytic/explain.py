"""What a played step holds, buffer by buffer, where each role is at its own highest: the explanation of a component."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memcalc.arrays import as_int
from memcalc.footprint import Held
from memcalc.tape.events import COMPONENTS, Alloc, Buffer, Event, Mark, Role
from memcalc.tape.unroll import Leaf, unroll

PLAYED: tuple[Role, ...] = ("parameter_copy", "cache", "input", "activation", "temporary", "communication", "workspace")
"""Roles that the played step explains; of the others the layout does, and of communication where it keeps buffers for good."""
REDUCED: tuple[Role, ...] = ("gradient",)
"""And that it explains too where an engine reduces gradients as they come, its buckets for good among communication."""


def held_by_role(tape: Iterable[Event], roles: Sequence[Role] = PLAYED) -> list[Held]:
    """The buffers behind each of these components, largest first; they add up to it.

    Buffers of one module, operator, shape and dtype are one line; so are equal layers of a stack.
    """
    events = list(unroll(tape))
    found: list[Held] = []
    for role, place in _highest(events, roles).items():
        found += _lines(role, _live(events[: place + 1], role))
    return found


def _highest(events: Sequence[Leaf], roles: Iterable[Role]) -> dict[Role, int]:
    """The event after which each role is highest."""
    live: dict[Role, int] = dict.fromkeys(roles, 0)
    tops: dict[Role, int] = dict.fromkeys(live, 0)
    places: dict[Role, int] = {}
    for place, event in enumerate(events):
        if isinstance(event, Mark) or event.buffer.role not in live or event.buffer.place != "device":
            continue
        role, size = event.buffer.role, as_int(event.buffer.requested)
        live[role] += size if isinstance(event, Alloc) else -size
        if live[role] > tops[role]:
            tops[role], places[role] = live[role], place
    return places


def _live(events: Sequence[Leaf], role: Role) -> dict[tuple[str, int], int]:
    """How many of each kind of buffer are alive after these events."""
    alive: dict[tuple[str, int], int] = {}
    for event in events:
        if isinstance(event, Mark) or event.buffer.role != role or event.buffer.place != "device":
            continue
        kind = (_name(event.buffer), as_int(event.buffer.requested))
        alive[kind] = alive.get(kind, 0) + (1 if isinstance(event, Alloc) else -1)
    return alive


def _name(buffer: Buffer) -> str:
    """``model.layers.*.mlp silu bfloat16[1, 4096, 14336]``; layers of a stack by a star."""
    parts = [part if not (part.isdigit() or part == "last") else "*" for part in buffer.module.split(".")]
    shape = "" if buffer.shape is None else f"{buffer.dtype}[{', '.join(map(str, buffer.shape))}]"
    named = buffer.site if not buffer.operator or buffer.role in ("input", "workspace", "cache") else buffer.operator
    return " ".join(word for word in (".".join(parts), named, shape) if word)


def _lines(role: Role, alive: dict[tuple[str, int], int]) -> list[Held]:
    rows = [(name, size, times) for (name, size), times in alive.items() if times and size]
    rows.sort(key=lambda row: -row[1] * row[2])
    return [Held(COMPONENTS[role], name, size, times, "device", "at its highest") for name, size, times in rows]
