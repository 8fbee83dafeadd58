"""A tape as a handful of sums: what the fold would find for a hundred thousand jobs, without folding for each.

At every instant of a tape the live bytes are a sum of buffers' sizes, each counted so many times, where a repetition counts
``1 + t`` for its body's ``t + 1`` turns. Instants whose every count is at most another's can never be the peak, whatever the
sizes: what is left, a handful of instants, is evaluated over arrays as one product of a matrix and the sizes.

>>> from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat
>>> layer, scratch = Buffer("layer", 1000, "activation"), Buffer("scratch", 300, "temporary")
>>> forms = forms_of([Mark("forward"), Repeat(3, (Alloc(layer), Alloc(scratch), Free(scratch)))])
>>> forms.instants, forms.top(lambda size: size)
(1, 3300)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from memcalc.arrays import Count, is_array
from memcalc.records import dataclass
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark, Repeat, Role
from memcalc.tape.sums import Values, undominated

Term = tuple[int, tuple[int, ...]]
"""(which size, which repetitions' further turns it is multiplied with)."""
Sum = dict[Term, int]


@dataclass
class Forms:
    """The instants that may be the peak, and those that may be a role's own.

    Attributes:
        sizes: the distinct sizes, requested.
        turns: of each distinct repetition, its turns beyond the first.
        terms: what the columns of the matrices are.
        total: a row for each instant that may be the peak of all roles together.
        roles: the same for each role by itself.
    """

    sizes: Sequence[Count]
    turns: Sequence[Count]
    terms: Sequence[Term]
    total: Any
    roles: dict[Role, Any]
    read: dict[Callable[[Count], Count], Values] = field(default_factory=dict)
    """What the terms come to, in each measure that was asked for."""

    @property
    def instants(self) -> int:
        """How many instants are left."""
        return len(self.total)

    def top(self, measure: Callable[[Count], Count]) -> Any:
        """The peak in one measure, for every job."""
        return self._read(measure).highest(self.total)

    def role_tops(self, measure: Callable[[Count], Count]) -> dict[Role, Any]:
        """Each role's own highest point."""
        read = self._read(measure)
        return {role: read.highest(rows) for role, rows in self.roles.items()}

    def _read(self, measure: Callable[[Count], Count]) -> Values:
        """Each term's value in a measure."""
        found = self.read.get(measure)
        if found is None:
            sizes = [measure(size) for size in self.sizes]
            values = []
            for size, turns in self.terms:
                value: Any = sizes[size]
                for turn in turns:
                    value = value * self.turns[turn]
                values.append(value)
            found = self.read[measure] = Values(values)
        return found


def forms_of(tape: Iterable[Event], place: str = "device") -> Forms:
    """The forms of a tape; sizes that are the same array, or the same number, are one."""
    reading = _Reading(place)
    reading.walk(list(tape), {}, ())
    return reading.forms()


class _Reading:
    """One walk over a tape, which notes what is live wherever allocations end."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.sizes: dict[int, int] = {}
        self.listed: list[Count] = []
        self.turns: list[Count] = []
        self.known: dict[tuple[str, int], int] = {}
        self.alike: dict[tuple[tuple[int, ...], int], list[int]] = {}
        self.peaks: set[frozenset[tuple[Term, int]]] = set()
        self.own: dict[Role, set[frozenset[tuple[Term, int]]]] = {}

    def walk(self, tape: Sequence[Event], live: dict[Role, Sum], under: tuple[int, ...]) -> None:
        """Through a tape from what is live at its start, which is changed to what is live at its end.

        What it adds counts as often as the repetitions say that it is ``under``.
        """
        climbing = False
        for event in tape:
            leaf = _leaf(event)
            if leaf is None:
                if climbing:
                    self.note(live)
                climbing = False
                if isinstance(event, Repeat):
                    self.repeated(event, live, under)
                continue
            buffer, times, sign = leaf
            if buffer.place != self.place:
                continue
            if climbing and sign < 0:
                self.note(live)
            climbing = sign > 0
            self.add(live.setdefault(buffer.role, {}), buffer, times, sign, under)
        if climbing:
            self.note(live)

    def repeated(self, event: Repeat, live: dict[Role, Sum], under: tuple[int, ...]) -> None:
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
        if key not in self.known:
            self.known[key] = len(self.turns)
            further = times - 1 if isinstance(times, int) else np.maximum(times - 1, 0)
            self.turns.append({"all": times, "further": further, "any": np.minimum(times, 1)}[what])
        return self.known[key]

    def add(self, live: Sum, buffer: Buffer, times: Count, sign: int, under: tuple[int, ...] = ()) -> None:
        """A buffer, or several alike, comes or goes."""
        if isinstance(times, int) and not times:
            return
        size = buffer.requested
        key = id(size) if is_array(size) else -int(size) - 1
        place = self.sizes.get(key)
        if place is None:
            place = self.sizes[key] = self.place_of(size)
        if _may_be_none(times):  # no sum may hold a first turn that is taken back by a further one
            _count(live, (place, tuple(sorted((*under, self.factor("all", times))))), sign)
            return
        _count(live, (place, under), sign)
        turn = self.turn(times)
        if turn is not None:
            _count(live, (place, tuple(sorted((*under, turn)))), sign)

    def place_of(self, size: Count) -> int:
        """Where a size is listed; arrays that hold the same numbers are one."""
        if is_array(size):
            alike = self.alike.setdefault((size.shape, int(size.sum())), [])  # type: ignore[union-attr]
            for place in alike:
                if np.array_equal(self.listed[place], size):
                    return place
            alike.append(len(self.listed))
        self.listed.append(size)
        return len(self.listed) - 1

    def note(self, live: dict[Role, Sum]) -> None:
        """What is live now may be a peak."""
        total: Sum = {}
        for role, terms in live.items():
            self.own.setdefault(role, set()).add(frozenset(terms.items()))
            for term, count in terms.items():
                _count(total, term, count)
        self.peaks.add(frozenset(total.items()))

    def forms(self) -> Forms:
        """Matrices of what was noted, the instants that cannot win left out."""
        terms = sorted({term for rows in (self.peaks, *self.own.values()) for row in rows for term, _ in row})
        columns = {term: place for place, term in enumerate(terms)}

        def matrix(rows: Iterable[frozenset[tuple[Term, int]]]) -> Any:
            listed = sorted(rows, key=lambda row: sorted(row))
            table = np.zeros((len(listed), len(terms)), dtype=np.int64)
            for number, row in enumerate(listed):
                for term, count in row:
                    table[number, columns[term]] = count
            return undominated(table)

        return Forms(
            self.listed, self.turns, terms, matrix(self.peaks), {role: matrix(rows) for role, rows in self.own.items()}
        )


def _leaf(event: Event) -> tuple[Buffer, Count, int] | None:
    """(buffer, how often, +1 or -1) for equal allocations or equal frees in a row; None for anything else."""
    times: Count = 1
    if isinstance(event, Repeat) and len(event.body) == 1 and not isinstance(event.body[0], Repeat | Mark):
        times, event = event.times, event.body[0]
    if isinstance(event, Alloc):
        return event.buffer, times, 1
    if isinstance(event, Free):
        return event.buffer, times, -1
    return None


def _may_be_none(times: Count) -> bool:
    """Whether some jobs have no turn where others have."""
    return is_array(times) and not bool(np.all(times > 0))


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
