"""What the optimizer's step needs at its highest instant, buffer by buffer: the explanation of its part of a peak."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from memcalc.arrays import Count
from memcalc.engines.analytic.update import kernels_events
from memcalc.models import Model
from memcalc.parallelism.base import Layout
from memcalc.plan import Plan
from memcalc.tape.events import Alloc, Buffer, Event, Free, Repeat
from memcalc.tape.unroll import turns

Needs = list[tuple[Buffer, Count]]


def step_needs(plan: Plan, layout: Layout, model: Model) -> Needs:
    """(buffer, how many of it) alive where the step's own requested bytes are highest, of one job."""
    return alive_at_the_top([*_once(kernels_events(plan, layout, model))])


def alive_at_the_top(events: Sequence[Event]) -> Needs:
    """(buffer, how many of it) alive where requested bytes are first at their highest, of one job's tape without marks.

    A gradient that is used inside backward is listed by itself, and is passed over here.

    >>> layer, scratch = Buffer("layer", 1000, "activation"), Buffer("scratch", 300, "temporary")
    >>> tape = [Repeat(3, (Alloc(layer), Alloc(scratch), Free(scratch))), Repeat(3, (Free(layer),))]
    >>> [(buffer.site, times) for buffer, times in alive_at_the_top(tape)]
    [('layer', 3), ('scratch', 1)]
    """
    live: dict[int, tuple[Buffer, int]] = {}
    if (path := _highest(events)[2]) is not None:
        _until(path, events, live)
    return _by_site(held for held in live.values() if held[1])


class _Path(NamedTuple):
    """Where an event lies in a tape: after how many whole turns of the repetition at its place, and where in its body."""

    place: int
    turns: int = 0
    inside: _Path | None = None


def _highest(events: Sequence[Event]) -> tuple[int, int, _Path | None]:
    """(bytes left behind, the highest total from the start, which event first comes to it) of events in a row.

    A body that leaves something behind is highest in its last turn, any other in its first.
    """
    total, top, path = 0, 0, None
    for place, event in enumerate(events):
        if not isinstance(event, Repeat):
            net = high = _change(event)
            here = _Path(place)
        elif times := turns(event):
            net, high, inside = _highest(event.body)
            before = times - 1 if net > 0 else 0
            net, high, here = times * net, before * net + high, _Path(place, before, inside)
        else:
            continue
        if total + high > top:
            top, path = total + high, here
        total += net
    return total, top, path


def _change(event: Event) -> int:
    assert isinstance(event, Alloc | Free), event
    if event.buffer.role == "gradient":
        return 0
    size = int(event.buffer.requested)
    return size if isinstance(event, Alloc) else -size


def _until(path: _Path, events: Sequence[Event], live: dict[int, tuple[Buffer, int]]) -> None:
    """Counts what is born less what dies up to the event at ``path``, and with it, in the order of first births."""
    for event in events[: path.place]:
        _count(event, 1, live)
    event = events[path.place]
    if not isinstance(event, Repeat):
        _count(event, 1, live)
        return
    _count(Repeat(path.turns, event.body), 1, live)
    if path.inside is not None:
        _until(path.inside, event.body, live)


def _count(event: Event, times: int, live: dict[int, tuple[Buffer, int]]) -> None:
    if isinstance(event, Repeat):
        times *= turns(event)
        for inner in event.body if times else ():
            _count(inner, times, live)
        return
    assert isinstance(event, Alloc | Free), event
    buffer = event.buffer
    if buffer.role != "gradient":
        before = live[id(buffer)][1] if id(buffer) in live else 0
        live[id(buffer)] = buffer, before + (times if isinstance(event, Alloc) else -times)


def _once(events: Iterable[Event]) -> Iterable[Event]:
    """The same with what leaves everything as it found it written once: its later turns reach no higher than its first."""
    for event in events:
        yield Repeat(1, event.body) if isinstance(event, Repeat) and event.times and not _leaves(event.body) else event


def _leaves(body: Sequence[Event]) -> bool:
    """Whether some buffer is born and dies unequally often in it; a repetition inside it is not looked into."""
    net: dict[int, int] = {}
    for event in body:
        if not isinstance(event, Alloc | Free):
            return True
        net[id(event.buffer)] = net.get(id(event.buffer), 0) + (1 if isinstance(event, Alloc) else -1)
    return any(net.values())


def _by_site(held: Iterable[tuple[Buffer, int]]) -> Needs:
    """Buffers of one name and size together: a stack's take turns under two of them."""
    alike: dict[tuple[str, int], tuple[Buffer, int]] = {}
    for buffer, times in held:
        key = (buffer.site, int(buffer.requested))
        alike[key] = (buffer, alike.get(key, (buffer, 0))[1] + times)
    return list(alike.values())
