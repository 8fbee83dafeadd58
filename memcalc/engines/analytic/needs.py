"""What the optimizer's step needs at its highest instant, buffer by buffer: the explanation of its part of a peak."""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.arrays import Count
from memcalc.engines.analytic.update import kernels_events
from memcalc.models import Model
from memcalc.parallelism.base import Layout
from memcalc.plan import Plan
from memcalc.tape.events import Alloc, Buffer, Free
from memcalc.tape.unroll import unroll

Needs = list[tuple[Buffer, Count]]


def step_needs(plan: Plan, layout: Layout, model: Model) -> Needs:
    """(buffer, how many of it) alive where the step's own requested bytes are highest, of one job."""
    live: dict[int, tuple[Buffer, int]] = {}
    highest: dict[int, tuple[Buffer, int]] = {}
    total = top = 0
    for event in unroll(kernels_events(plan, layout, model)):
        assert isinstance(event, Alloc | Free)
        sign = 1 if isinstance(event, Alloc) else -1
        total += sign * int(event.buffer.requested)
        live[id(event.buffer)] = (event.buffer, live.get(id(event.buffer), (event.buffer, 0))[1] + sign)
        if total > top:
            top, highest = total, {key: held for key, held in live.items() if held[1]}
    return _by_site(highest.values())


def _by_site(held: Iterable[tuple[Buffer, int]]) -> Needs:
    """Buffers of one name and size together: a stack's take turns under two of them."""
    alike: dict[tuple[str, int], tuple[Buffer, int]] = {}
    for buffer, times in held:
        key = (buffer.site, int(buffer.requested))
        alike[key] = (buffer, alike.get(key, (buffer, 0))[1] + times)
    return list(alike.values())
