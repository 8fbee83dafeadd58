"""The fold of one job: the algebra of ``memcalc.tape.fold`` on plain ints, added up in place.

One job's tape needs no ``where``: the running totals are changed as the tape goes by, and a table of roles is copied only
where a new highest point is met. It gives what the algebra gives; a number that is no int, as an array is not, leaves the
tape to the algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from memcalc.arrays import BLOCK, rounded
from memcalc.tape.events import Alloc, Event, Free, Mark, Phase, Repeat, Role

MASK = BLOCK - 1
Instant = tuple[Phase, str]


class NotOneJobError(Exception):
    """A size or a count is no int."""


class Totals:
    """What a stretch comes to, as :class:`memcalc.tape.fold.Stretch` has it, with the instant itself for its number."""

    __slots__ = ("at_top", "instant", "net", "phase_top", "role_top", "roles", "top", "total")

    def __init__(self) -> None:
        self.net: dict[Role, int] = {}
        self.total = self.top = 0
        self.at_top: dict[Role, int] = {}
        self.instant: Instant | None = None
        self.role_top: dict[Role, int] = {}
        self.phase_top: dict[Phase, int] = {}
        self.roles: set[Role | None] = set()
        """Of all buffers inside; None for one of another place, and for a mark."""


class FolderOfOne:
    """One reading of one job's tape."""

    def __init__(self, measure: Callable[[int], Any] | None, place: str) -> None:
        self.measure, self.place = measure, place  # None for bytes as they were asked for
        self.rounds = measure is rounded
        self.phase: Phase = "init"

    def totals(self, events: Iterable[Event]) -> Totals:  # noqa: C901 - one loop, a call a buffer would cost
        """Events in a row; a run of allocations is highest at its end.

        Raises:
            NotOneJobError: a number is no int.
        """
        done = Totals()
        net, role_top, roles, place = done.net, done.role_top, done.roles, self.place
        measure, rounds = self.measure, self.rounds
        total, rising, site = 0, False, ""
        for event in events:
            kind = event.__class__
            times: Any = 1
            leaf = event
            if kind is Repeat and len(event.body) == 1:  # type: ignore[union-attr]
                times, leaf = event.times, event.body[0]  # type: ignore[union-attr]
                kind = leaf.__class__
            if kind is not Alloc and kind is not Free:
                if rising:
                    self.note(done, total, site)
                    rising = False
                done.total = total
                self.compose(done, event)
                total = done.total
                continue
            buffer = leaf.buffer  # type: ignore[union-attr]
            if buffer.place != place:
                roles.add(None)
                continue
            size: Any = buffer.requested
            if size.__class__ is not int or times.__class__ is not int or times < 0:
                raise NotOneJobError
            if rounds:
                size = (size + MASK) & ~MASK
            elif measure is not None:
                size = measure(size)
            size = times * size
            role = buffer.role
            if kind is Alloc:
                site, rising = buffer.site, True
                total += size
                held = net[role] = net.get(role, 0) + size
                if held > role_top.get(role, 0):
                    role_top[role] = held
            else:
                if rising:
                    self.note(done, total, site)
                    rising = False
                total -= size
                net[role] = net.get(role, 0) - size
        if rising:
            self.note(done, total, site)
        roles.update(net)
        done.total = total
        return done

    def note(self, done: Totals, total: int, site: str) -> None:
        """Allocations end, as high as this."""
        if total > done.top:
            done.top, done.at_top, done.instant = total, dict(done.net), (self.phase, site)
        _raise(done.phase_top, self.phase, total)

    def compose(self, done: Totals, event: Event) -> None:
        """A mark, which opens its phase, or a body repeated."""
        if event.__class__ is Mark:
            self.phase = event.phase
            _raise(done.phase_top, self.phase, done.total)
            done.roles.add(None)
            return
        assert isinstance(event, Repeat), event
        times: Any = event.times
        if times.__class__ is not int or times < 0:
            raise NotOneJobError
        body = self.totals(event.body)
        if len(body.roles) == 1 and None not in body.roles and body.instant is not None and not body.instant[1]:
            body.instant = body.instant[0], "?"
        # the top is in the last turn where each turn leaves something behind, in the first where it does not
        further = times - 1
        lead = further * body.total if body.total > 0 else 0
        if times > 0:
            _rise(done, body, further if lead else 0, further)
        for phase, top in body.phase_top.items():
            _raise(done.phase_top, phase, done.total + (lead + top if times > 0 else 0))
        for role, size in body.net.items():
            done.net[role] = done.net.get(role, 0) + times * size
        done.total += times * body.total
        done.roles |= body.roles


def _raise(tops: dict[Phase, int], phase: Phase, high: int) -> None:
    if high > tops.get(phase, high - 1):
        tops[phase] = high


def _rise(done: Totals, body: Totals, lead: int, further: int) -> None:
    """How high a repeated body rises: its turn that is highest comes after ``lead`` others; each role has one of its own."""
    high = done.total + lead * body.total + body.top
    if high > done.top:
        done.top, done.instant = high, body.instant
        done.at_top = {
            role: done.net.get(role, 0) + lead * body.net.get(role, 0) + body.at_top.get(role, 0)
            for role in {**done.net, **body.net}
        }
    for role, top in body.role_top.items():
        high = done.net.get(role, 0) + top + max(further * body.net.get(role, 0), 0)
        if high > done.role_top.get(role, 0):
            done.role_top[role] = high
