"""Fold: read a tape as two numbers a stretch, ``net`` and ``top``, without expanding what repeats.

``net`` is what a stretch leaves behind, ``top`` the highest point inside it, both from its start:

    a then b:    net = a.net + b.net              top = max(a.top, a.net + b.top)
    n times a:   net = n·a.net                    top = max(a.top, (n − 1)·a.net + a.top)

Which instant won and what was live then, role by role, follows the same ``max``. Numbers are ints or int64 arrays: a sweep
is this very code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import field

from memcalc.arrays import Count, maximum, rounded, where
from memcalc.records import dataclass
from memcalc.tape.events import Buffer, Event, Mark, Phase, Repeat, Role, leaf_of
from memcalc.tape.fold_one import FolderOfOne, NotOneJobError

Measure = Callable[[Count], Count]
Roles = dict[Role, Count]


def requested(size: Count) -> Count:
    """The measure that takes a buffer's bytes as asked for."""
    return size


@dataclass(slots=True)
class Stretch:
    """A stretch of tape, folded.

    Attributes:
        net: bytes by role that it leaves behind (negative where it frees more than it makes).
        top: the highest total inside it, from its start; at least 0, its start.
        at_top: bytes by role at that point, summing to ``top``.
        instant: which point that is, as an index into the fold's list of instants.
        role_top: the highest point of each role on its own.
        phase_top: the highest total inside each phase it touches, from its start.
    """

    net: Roles = field(default_factory=dict)
    top: Count = 0
    at_top: Roles = field(default_factory=dict)
    instant: Count = -1
    role_top: Roles = field(default_factory=dict)
    phase_top: dict[Phase, Count] = field(default_factory=dict)

    @property
    def total(self) -> Count:
        """Net bytes over all roles."""
        return sum(self.net.values(), 0)

    def then(self, after: Stretch) -> Stretch:
        """This stretch followed by another."""
        base = self.total
        if not after.at_top and not after.role_top:
            # a mark or a run of frees: nothing in it rises above its start, so that only what is left behind changes
            return Stretch(
                net={role: self.net.get(role, 0) + after.net.get(role, 0) for role in {**self.net, **after.net}},
                top=self.top,
                at_top={**dict.fromkeys(after.net, 0), **self.at_top},
                instant=self.instant,
                role_top=self.role_top,
                phase_top=_merge(self.phase_top, dict.fromkeys(after.phase_top, base)),
            )
        candidate = base + after.top
        wins = candidate > self.top
        roles = {**self.net, **after.net, **self.at_top, **after.at_top, **self.role_top, **after.role_top}
        return Stretch(
            net={role: self.net.get(role, 0) + after.net.get(role, 0) for role in roles},
            top=maximum(self.top, candidate),
            at_top={
                role: where(wins, self.net.get(role, 0) + after.at_top.get(role, 0), self.at_top.get(role, 0)) for role in roles
            },
            instant=where(wins, after.instant, self.instant),
            role_top={
                role: maximum(self.role_top.get(role, 0), self.net.get(role, 0) + after.role_top.get(role, 0)) for role in roles
            },
            phase_top=_merge(self.phase_top, {phase: base + top for phase, top in after.phase_top.items()}),
        )

    def times(self, count: Count) -> Stretch:
        """This stretch ``count`` times over; nothing at all for 0."""
        some = count > 0
        # The top is in the last turn where each turn leaves something behind, in the first where it does not.
        before = where(some, count - 1, 0)
        climbs = self.total > 0
        lead = {role: where(climbs, before * net, 0) for role, net in self.net.items()}
        base = sum(lead.values(), 0)
        return Stretch(
            net={role: count * net for role, net in self.net.items()},
            top=where(some, base + self.top, 0),
            at_top={role: where(some, lead.get(role, 0) + bytes_, 0) for role, bytes_ in self.at_top.items()},
            instant=self.instant,
            role_top={
                role: where(some, maximum(top, before * self.net.get(role, 0) + top), 0) for role, top in self.role_top.items()
            },
            phase_top={phase: where(some, base + top, 0) for phase, top in self.phase_top.items()},
        )


@dataclass(frozen=True, slots=True)
class Fold:
    """A tape, read.

    Attributes:
        stretch: the whole tape as one stretch.
        instants: (phase, site) of every point that was a candidate for the peak.
    """

    stretch: Stretch
    instants: tuple[tuple[Phase, str], ...]

    def instant(self) -> tuple[Phase, str]:
        """The phase and site of the peak, for one job."""
        index = self.stretch.instant
        assert isinstance(index, int), "the instant of one job, not of many"
        return self.instants[index] if index >= 0 else ("init", "")


def fold(tape: Iterable[Event], measure: Measure = rounded, place: str = "device") -> Fold:
    """Read a tape in one measure and one place.

    >>> from memcalc.tape.events import Alloc, Buffer, Free
    >>> layer = Buffer("layer", 1000, "activation")
    >>> scratch = Buffer("scratch", 300, "temporary")
    >>> tape = [Mark("forward"), Repeat(3, (Alloc(layer), Alloc(scratch), Free(scratch)))]
    >>> folded = fold(tape, requested).stretch
    >>> folded.top, folded.total, folded.at_top["temporary"]
    (3300, 3000, 300)
    """
    events = list(tape)
    try:
        one = FolderOfOne(None if measure is requested else measure, place).totals(events)
    except NotOneJobError:
        return _Folder(measure, place).run(events)
    found = Stretch(one.net, one.top, one.at_top, -1 if one.instant is None else 0, one.role_top, one.phase_top)  # type: ignore[arg-type]
    return Fold(found, () if one.instant is None else (one.instant,))


class _Folder:
    """One reading. Runs of allocations, and runs of frees, are gathered before they are composed: they only climb or fall."""

    def __init__(self, measure: Measure, place: str) -> None:
        self.measure = measure
        self.place = place
        self.phase: Phase = "init"
        self.instants: list[tuple[Phase, str]] = []

    def run(self, tape: Iterable[Event]) -> Fold:
        """The whole tape."""
        return Fold(self.stretch(tape), tuple(self.instants))

    def stretch(self, events: Iterable[Event]) -> Stretch:
        """Events in a row, composed."""
        done = Stretch()
        run: Roles = {}
        sign, site = 1, ""
        for event in events:
            leaf = leaf_of(event)
            if leaf is None:
                done, run = done.then(self.gathered(run, sign, site)).then(self.composed(event)), {}
                continue
            buffer, times, direction = leaf
            if buffer.place != self.place:
                continue
            if direction != sign:
                done, run = done.then(self.gathered(run, sign, site)), {}
            sign, site = direction, buffer.site
            run[buffer.role] = run.get(buffer.role, 0) + times * self.measure(buffer.requested)
        return done.then(self.gathered(run, sign, site))

    def composed(self, event: Event) -> Stretch:
        """A mark, which opens its phase, or a body repeated."""
        if isinstance(event, Mark):
            self.phase = event.phase
            return Stretch(phase_top={event.phase: 0})
        assert isinstance(event, Repeat), event
        role = _only_role(event.body, self.place)
        if role is None:
            return self.stretch(event.body).times(event.times)
        net, top, instant = _repeated(event.times, *self.of_one_role(event.body))
        alike = {role: top}
        return Stretch({role: net}, top, alike, instant, alike, {self.phase: top})

    def of_one_role(self, events: Iterable[Event]) -> tuple[Count, Count, Count]:
        """(net, top, instant) of events that share a role: the same algebra without its tables, as a step's loops want it."""
        net: Count = 0
        top: Count = 0
        instant: Count = -1
        run: Count = 0
        rising, site = True, ""
        for event in (*events, None):
            leaf = None if event is None else leaf_of(event)
            if leaf is not None and (leaf[2] > 0) == rising:
                run = run + leaf[1] * self.measure(leaf[0].requested)
                site = leaf[0].site or "?"
                continue
            if rising and site:
                self.instants.append((self.phase, site))
                net, top, instant = _after(net, top, instant, run, run, len(self.instants) - 1)
            else:
                net = net - run
            if leaf is not None:
                rising, run, site = leaf[2] > 0, leaf[1] * self.measure(leaf[0].requested), leaf[0].site or "?"
            else:
                rising, run, site = True, 0, ""
                if isinstance(event, Repeat):
                    net, top, instant = _after(net, top, instant, *_repeated(event.times, *self.of_one_role(event.body)))
        return net, top, instant

    def gathered(self, run: Roles, sign: int, site: str) -> Stretch:
        """A run of allocations, whose end is its top, or of frees, whose start is."""
        if not run:
            return Stretch()
        if sign < 0:
            return Stretch(net={role: -size for role, size in run.items()})
        top = sum(run.values(), 0)
        self.instants.append((self.phase, site))
        return Stretch(dict(run), top, dict(run), len(self.instants) - 1, dict(run), {self.phase: top})


def _after(
    net: Count, top: Count, instant: Count, net_after: Count, top_after: Count, instant_after: Count
) -> tuple[Count, Count, Count]:
    """A stretch of one role followed by another."""
    candidate = net + top_after
    return net + net_after, maximum(top, candidate), where(candidate > top, instant_after, instant)


def _repeated(times: Count, net: Count, top: Count, instant: Count) -> tuple[Count, Count, Count]:
    """A stretch of one role ``times`` over."""
    some = times > 0
    lead = where(net > 0, where(some, times - 1, 0) * net, 0)
    return times * net, where(some, lead + top, 0), instant


def _only_role(events: Iterable[Event], place: str) -> Role | None:
    """The role of all buffers in a body, in this place; None where there are several, or another place's."""
    found: Role | None = None
    for event in events:
        if isinstance(event, Mark):
            return None
        role = _only_role(event.body, place) if isinstance(event, Repeat) else _here(event.buffer, place)
        if role is None or found not in (None, role):
            return None
        found = role
    return found


def _here(buffer: Buffer, place: str) -> Role | None:
    return buffer.role if buffer.place == place else None


def _merge(first: dict[Phase, Count], second: dict[Phase, Count]) -> dict[Phase, Count]:
    merged = dict(first)
    for phase, top in second.items():
        merged[phase] = maximum(merged[phase], top) if phase in merged else top
    return merged
