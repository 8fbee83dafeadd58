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

from memcalc.arrays import Count
from memcalc.records import dataclass
from memcalc.tape.events import Event, Role
from memcalc.tape.sums import Values, undominated
from memcalc.tape.walk import Row, Term, walk_of


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
    walked = walk_of(tape, place)
    terms = walked.terms()
    columns = {term: number for number, term in enumerate(terms)}

    def matrix(rows: Iterable[Row]) -> Any:
        listed = list(rows)
        cells = [0] * (len(listed) * len(terms))
        for number, row in enumerate(listed):
            for term, count in row:
                cells[number * len(terms) + columns[term]] = count
        table = np.array(cells, dtype=np.int64).reshape(len(listed), len(terms))
        return undominated(table)

    return Forms(
        walked.sizes, walked.turns, terms, matrix(walked.instants), {role: matrix(rows) for role, rows in walked.own.items()}
    )
