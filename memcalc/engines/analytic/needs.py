"""What the optimizer's step needs at its highest instant, buffer by buffer: the explanation of its part of a peak."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memcalc.arrays import Count
from memcalc.engines.analytic.update import kernels_events
from memcalc.models import Model
from memcalc.parallelism.base import Layout
from memcalc.plan import Plan
from memcalc.tape.events import Alloc, Buffer, Event, Free, Repeat
from memcalc.tape.unroll import unroll

Needs = list[tuple[Buffer, Count]]


def step_needs(plan: Plan, layout: Layout, model: Model) -> Needs:
    """(buffer, how many of it) alive where the step's own requested bytes are highest, of one job."""
    unrolled = unroll(_once(kernels_events(plan, layout, model)))
    # a gradient that is used inside backward is listed by itself
    events = [event for event in unrolled if not isinstance(event, Alloc | Free) or event.buffer.role != "gradient"]
    total = top = end = 0
    for place, event in enumerate(events, 1):
        size = int(event.buffer.requested)  # type: ignore[union-attr]
        total += size if event.__class__ is Alloc else -size
        if total > top:
            top, end = total, place
    live: dict[int, tuple[Buffer, int]] = {}
    for event in events[:end]:
        assert isinstance(event, Alloc | Free)
        sign = 1 if isinstance(event, Alloc) else -1
        live[id(event.buffer)] = (event.buffer, live.get(id(event.buffer), (event.buffer, 0))[1] + sign)
    return _by_site(held for held in live.values() if held[1])


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
