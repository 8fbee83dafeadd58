"""One walk over a tape: at every instant that may be a peak, which sizes are live how often, whatever they are.

A repetition's body is walked twice, for its highest point is in its first turn or in its last; what stands between counts with
its further turns. Sizes are numbers, arrays of them, or formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeAlias

from memcalc.arrays import Count, is_array, maximum, minimum, recording_of
from memcalc.records import dataclass
from memcalc.tape.events import Buffer, Event, Mark, Phase, Repeat, Role, leaf_of

Term: TypeAlias = tuple[int, tuple[int, ...]]
"""(which size, which repetitions' further turns it is multiplied with)."""
Sum: TypeAlias = dict[Term, int]
Live: TypeAlias = dict[Role | None, Sum]
"""What is live, by role; under None, that of all roles together."""
Row: TypeAlias = frozenset[tuple[Term, int]]
"""What is live at an instant: terms, and how often each."""


@dataclass
class Instant:
    """The first instant at which just this is live.

    Attributes:
        roles: what is live, by role.
        phase: when it is.
        sites: (size, site) of what was made last and before it, without anything going in between, the last first.
    """

    roles: dict[Role, Sum]
    phase: Phase
    sites: Sequence[tuple[Count, str]]


def walk_of(tape: Iterable[Event], place: str = "device") -> Walk:
    """The instants of a tape; sizes that are the same array, or the same number, are one."""
    found = Walk(place)
    found.walk(list(tape), {}, ())
    return found


class Walk:
    """What a walk has noted wherever allocations end.

    Attributes:
        sizes: the distinct sizes, as they are requested.
        turns: of each distinct repetition, its turns beyond the first.
        instants: what was live, and when that was first.
        own: the same for each role by itself.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.sizes: list[Count] = []
        self.turns: list[Count] = []
        self.instants: dict[Row, Instant] = {}
        self.own: dict[Role, dict[Row, None]] = {}
        self._phase: Phase = "init"
        self._places: dict[int, int] = {}
        self._known: dict[tuple[str, int], int] = {}
        self._alike: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def terms(self) -> list[Term]:
        """Every term that is live at some instant, in order."""
        rows: Iterable[Row] = chain(self.instants, *self.own.values())
        return sorted({term for row in rows for term, _ in row})

    def walk(self, tape: Sequence[Event], live: Live, under: tuple[int, ...]) -> None:
        """Through a tape from what is live at its start, which is changed to what is live at its end.

        What it adds counts as often as the repetitions say that it is ``under``.
        """
        made: list[Buffer] = []  # since something last went
        for event in tape:
            leaf = leaf_of(event)
            if leaf is None:
                self.note(live, made)
                made = []
                if isinstance(event, Mark):
                    self._phase = event.phase
                elif isinstance(event, Repeat):
                    self.repeated(event, live, under)
                continue
            buffer, times, sign = leaf
            if buffer.place != self.place:
                continue
            if sign < 0:
                self.note(live, made)
                made = []
            else:
                made.append(buffer)
            own, every = live.setdefault(buffer.role, {}), live.setdefault(None, {})
            for term in self.added(buffer, times, under):
                _count(own, term, sign)
                _count(every, term, sign)
        self.note(live, made)

    def repeated(self, event: Repeat, live: Live, under: tuple[int, ...]) -> None:
        """A body of several turns: its highest point is in the first or in the last of them."""
        if isinstance(event.times, int) and not event.times:
            return
        if _may_be_none(event.times):  # some jobs have no turn at all, and nothing of the body
            under = (*under, self.factor("any", event.times))
        before = {role: dict(terms) for role, terms in live.items()}
        self.walk(event.body, live, under)
        turn = self.turn(event.times)
        if turn is None:
            return
        # what one turn leaves behind, times the further turns, is there when the last one begins
        net = {role: _minus(terms, before.get(role, {})) for role, terms in live.items()}
        last = {role: _plus(before.get(role, {}), _multiplied(net.get(role, {}), turn)) for role in {**before, **net}}
        self.walk(event.body, last, under)
        live.clear()
        live.update(last)

    def turn(self, times: Count) -> int | None:
        """The number of a repetition's further turns; None for a body of one."""
        return None if isinstance(times, int) and times == 1 else self.factor("further", times)

    def factor(self, what: str, times: Count) -> int:
        """The number of what a repetition multiplies with, never below 0: its turns, the further ones, or whether any is."""
        key = (what, id(times) if is_array(times) else -int(times))
        if key not in self._known:
            self._known[key] = len(self.turns)
            further = times - 1 if isinstance(times, int) else maximum(times - 1, 0)
            self.turns.append({"all": times, "further": further, "any": minimum(times, 1)}[what])
        return self._known[key]

    def added(self, buffer: Buffer, times: Count, under: tuple[int, ...]) -> Sequence[Term]:
        """What counts once more when a buffer, or several alike, comes, and once less when it goes."""
        if isinstance(times, int) and not times:
            return ()
        size = buffer.requested
        key = id(size) if is_array(size) else -int(size) - 1
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = self._place_of(size)
        if _may_be_none(times):  # no sum may hold a first turn that is taken back by a further one
            return ((place, tuple(sorted((*under, self.factor("all", times))))),)
        turn = self.turn(times)
        return ((place, under),) if turn is None else ((place, under), (place, tuple(sorted((*under, turn)))))

    def _place_of(self, size: Count) -> int:
        """Where a size is listed; arrays that hold the same numbers are one."""
        if is_array(size) and recording_of(size) is None:
            import numpy

            alike = self._alike.setdefault((size.shape, int(size.sum())), [])  # type: ignore[union-attr]
            for place in alike:
                if numpy.array_equal(self.sizes[place], size):
                    return place
            alike.append(len(self.sizes))
        self.sizes.append(size)
        return len(self.sizes) - 1

    def note(self, live: Live, made: Sequence[Buffer]) -> None:
        """What is live now may be a peak, if anything was made since something last went."""
        if not made:
            return
        for role in {buffer.role for buffer in made}:
            self.own.setdefault(role, {})[frozenset(live[role].items())] = None
        row = frozenset(live[None].items())
        if row not in self.instants:
            roles = {role: dict(terms) for role, terms in live.items() if terms and role is not None}
            self.instants[row] = Instant(roles, self._phase, [(one.requested, one.site or "?") for one in reversed(made)])


def _may_be_none(times: Count) -> bool:
    """Whether some jobs have no turn where others have."""
    if not is_array(times):
        return False
    some = times > 0
    return not (some.all() if is_array(some) else some)  # type: ignore[union-attr]


def _count(terms: Sum, term: Term, count: int) -> None:
    found = terms.get(term, 0) + count
    if found:
        terms[term] = found
    else:
        terms.pop(term, None)


def _plus(first: Sum, second: Sum) -> Sum:
    found = dict(first)
    for term, count in second.items():
        _count(found, term, count)
    return found


def _minus(first: Sum, second: Sum) -> Sum:
    found = dict(first)
    for term, count in second.items():
        _count(found, term, -count)
    return found


def _multiplied(terms: Sum, turn: int) -> Sum:
    return {(size, tuple(sorted((*turns, turn)))): count for (size, turns), count in terms.items()}
