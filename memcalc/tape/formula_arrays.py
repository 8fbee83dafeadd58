"""A tape whose sizes are formulas, for many jobs at once: the forms of ``memcalc.tape.forms``, once for all sizes.

The instants that may be the peak are rows of counts of sizes, and in a measure each size is a polynomial in atoms: the product
of the two counts a few arrays, those of the atoms, in place of every size.

>>> from memcalc.recording import Recording
>>> from memcalc.tape.events import Alloc, Buffer, Mark
>>> recording = Recording()
>>> rows = recording.input("rows", 10)
>>> forms = FormulaArrays([Mark("forward"), Alloc(Buffer("layer", 100 * rows, "activation"))])
>>> forms.measured(lambda size: size).read(recording.read({"rows": np.array([20, 30])})).top().tolist()
[2000, 3000]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from memcalc.arrays import Count
from memcalc.recording import Reading
from memcalc.records import dataclass
from memcalc.symbols import Monomial, terms_of
from memcalc.tape.events import Event, Role
from memcalc.tape.forms import forms_of
from memcalc.tape.sums import Values


@dataclass
class MeasuredArrays:
    """What may be the peak in one measure, and what may be a role's own.

    Attributes:
        monomials: products of atoms.
        total: a row for each instant, how often each of them counts.
        roles: the same for each role by itself.
    """

    monomials: Sequence[Monomial]
    total: Any
    roles: dict[Role, Any]

    def read(self, reading: Reading) -> ArraysRead:
        """The atoms' products for some jobs."""
        return ArraysRead(self, Values([reading.monomial(one) for one in self.monomials]))


@dataclass
class ArraysRead:
    """The formulas of one measure, for some jobs.

    Attributes:
        measured: the formulas.
        values: what the products of atoms are.
    """

    measured: MeasuredArrays
    values: Values

    def top(self) -> Count:
        """The peak's bytes, job by job."""
        most: Count = self.values.highest(self.measured.total)
        return most

    def role_tops(self, roles: Iterable[Role]) -> dict[Role, Count]:
        """Each of these roles' own highest point."""
        return {role: self.values.highest(self.measured.roles[role]) for role in roles if role in self.measured.roles}


class FormulaArrays:
    """A tape of formulas, walked once."""

    def __init__(self, tape: Iterable[Event]) -> None:
        self.forms = forms_of(tape)
        self.read: dict[Callable[[Count], Count], MeasuredArrays] = {}

    def measured(self, measure: Callable[[Count], Count]) -> MeasuredArrays:
        """The polynomials in a measure."""
        found = self.read.get(measure)
        if found is None:
            sizes = [measure(size) for size in self.forms.sizes]
            rows: list[dict[int, int]] = []
            places: dict[Monomial, int] = {}
            for size, turns in self.forms.terms:
                value: Any = sizes[size]
                for turn in turns:
                    value = value * self.forms.turns[turn]
                rows.append({places.setdefault(one, len(places)): count for one, count in terms_of(value)})
            table = np.zeros((len(rows), len(places)), dtype=np.int64)
            for number, row in enumerate(rows):
                for place, count in row.items():
                    table[number, place] = count
            found = self.read[measure] = MeasuredArrays(
                list(places), self.forms.total @ table, {role: rows @ table for role, rows in self.forms.roles.items()}
            )
        return found
