"""A tape whose sizes are formulas, read as the few sums that may be its peak, for any sizes its recording holds for.

At every instant the live bytes are a sum of formulas: a polynomial. An instant whose every term is counted at most as often as
another's can never be the peak; what is left is worked out for a job in microseconds. For a hundred thousand jobs at once,
``memcalc.tape.formula_arrays`` does the same with arrays.

>>> from memcalc.recording import Recording
>>> from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat
>>> recording = Recording()
>>> rows = recording.input("rows", 10)
>>> layer, scratch = Buffer("layer", 100 * rows, "activation"), Buffer("scratch", 300, "temporary")
>>> tape = [Mark("forward"), Repeat(3, (Alloc(layer), Alloc(scratch), Free(scratch)))]
>>> read = Formulas(tape, recording).measured(lambda size: size)
>>> len(read.instants), read.highest(recording.read({"rows": 20})).top
(1, 6300)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from typing import Any, TypeAlias

import numpy as np

from memcalc.arrays import Count
from memcalc.reading import Reading
from memcalc.recording import Recording
from memcalc.records import dataclass
from memcalc.symbols import Monomial, is_symbol, terms_of
from memcalc.tape.events import Event, Phase, Role
from memcalc.tape.polynomials import Polynomials, Table, Total, at_least, first_highest, require_size
from memcalc.tape.walk import Instant, Row, Sum, Term, walk_of

Measure: TypeAlias = Callable[[Count], Count]


@dataclass
class Moment:
    """A moment that may be the peak.

    Attributes:
        total: live bytes: which products of atoms, and how often each.
        live: the sizes that are live, by role.
        phase: when it is.
        sites: (size, site) of what was made last, the last first.
        roles: bytes by role, once somebody has asked.
    """

    total: Total
    live: dict[Role, Sum]
    phase: Phase
    sites: Sequence[tuple[Any, str]]
    roles: dict[Role, Any] | None = None


@dataclass
class Highest:
    """The peak of one job.

    Attributes:
        top: its bytes.
        roles: what was live then, by role.
        phase: when it was.
        site: what was made last.
    """

    top: int
    roles: dict[Role, int]
    phase: Phase
    site: str


@dataclass
class Measured:
    """What may be the peak in one measure, and what may be a role's own.

    Attributes:
        recording: where the formulas are.
        terms: what each size comes to, multiplied with the turns of what repeats it.
        monomials: the products of atoms.
        instants: in their order, those that cannot win left out.
        own: of each role, the sums that may be its highest.
    """

    recording: Recording
    terms: dict[Term, Any]
    monomials: Sequence[Monomial]
    instants: Sequence[Moment]
    own: dict[Role, Sequence[Total]] = field(default_factory=dict)

    def highest(self, reading: Reading) -> Highest:
        """The peak of one job: of instants alike, the first."""
        values = self._values(reading)
        totals = [sum([count * values[place] for place, count in instant.total]) for instant in self.instants]
        top = max(totals, default=0)
        found = self.instants[totals.index(top)] if top > 0 else None
        if found is None:
            return Highest(0, {}, "init", "")
        if found.roles is None:
            found.roles = {role: self._sum_of(live) for role, live in found.live.items()}
        site = next((site for size, site in found.sites if not is_symbol(size) or reading.value(size)), "?")
        return Highest(top, {role: reading.value(size) for role, size in found.roles.items()}, found.phase, site)

    def _sum_of(self, live: Sum) -> Any:
        """The polynomial of what is live."""
        found: dict[Monomial, int] = {}
        for term, count in live.items():
            for monomial, times in terms_of(self.terms[term]):
                found[monomial] = found.get(monomial, 0) + count * times
        return self.recording.polynomial({monomial: count for monomial, count in found.items() if count})

    def role_tops(self, reading: Reading) -> dict[Role, int]:
        """Each role's own highest point."""
        values = self._values(reading)
        return {
            role: max([sum([count * values[place] for place, count in total]) for total in totals], default=0)
            for role, totals in self.own.items()
        }

    def _values(self, reading: Reading) -> list[int]:
        return [reading.monomial(one) for one in self.monomials]


class Formulas:
    """A tape of formulas, walked once, and its instants that may be the peak in any measure.

    Raises:
        NotParametricError: a size is below zero.
    """

    def __init__(self, tape: Iterable[Event], recording: Recording, place: str = "device") -> None:
        self.recording = recording
        walked = walk_of(tape, place)
        self.sizes, self.turns = walked.sizes, walked.turns
        for size in (*walked.sizes, *walked.turns):
            require_size(size)
        self.terms = walked.terms()
        sure = np.array([self._product(term, walked.sizes, at_least) > 0 for term in self.terms], dtype=bool)
        listed = list(walked.instants.items())
        table = self._table([row for row, _ in listed])
        kept = first_highest(table, table, sure)
        self.instants: list[Instant] = [listed[place][1] for place in kept]
        self.table = table[kept]
        self.own: dict[Role, Table] = {}
        for role, rows in walked.own.items():
            mine = self._table(list(rows))
            self.own[role] = mine[first_highest(mine, mine, sure)]
        self.read: dict[Measure, Measured] = {}

    def measured(self, measure: Measure) -> Measured:
        """The polynomials in a measure.

        Raises:
            NotParametricError: a size is below zero.
        """
        found = self.read.get(measure)
        if found is None:
            found = self.read[measure] = self._measured(measure)
        return found

    def _measured(self, measure: Measure) -> Measured:
        sizes = [measure(size) for size in self.sizes]
        made = {term: self._product(term, sizes, lambda size: size) for term in self.terms}
        polynomials = Polynomials(self.recording, [made[term] for term in self.terms])
        instants = [
            Moment(total, self.instants[place].roles, self.instants[place].phase, self.instants[place].sites)
            for place, total in polynomials.highest(self.table)
        ]
        own: dict[Role, Sequence[Total]] = {}
        for role, rows in self.own.items():
            own[role] = [total for _, total in polynomials.highest(rows)]
        return Measured(self.recording, made, polynomials.monomials, instants, own)

    def _table(self, rows: Sequence[Row]) -> Table:
        """Rows as a matrix: how often each term is live."""
        columns = {term: place for place, term in enumerate(self.terms)}
        table = np.zeros((len(rows), len(columns)), dtype=np.int64)
        for number, row in enumerate(rows):
            for term, count in row:
                table[number, columns[term]] = count
        return table

    def _product(self, term: Term, sizes: Sequence[Any], of: Callable[[Any], Any]) -> Any:
        """A term: a size, multiplied with the turns of what repeats it."""
        size, turns = term
        found = of(sizes[size])
        for turn in turns:
            found = found * of(self.turns[turn])
        return found
