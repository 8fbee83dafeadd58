"""A tape whose sizes are formulas, for many jobs at once: the forms of ``memcalc.tape.forms``, once for all sizes.

The instants that may be the peak are rows of counts of sizes, and in a measure each size is a polynomial in atoms: the product
of the two counts a few arrays, those of the atoms, in place of every size. Which instants may win is asked of the jobs that are
read (``memcalc.tape.contenders``).

>>> from memcalc.recording import Recording
>>> from memcalc.tape.events import Alloc, Buffer, Mark
>>> recording = Recording()
>>> rows = recording.input("rows", 10)
>>> tape = [Mark("forward"), Alloc(Buffer("layer", 100 * rows, "activation"))]
>>> FormulaArrays(tape, recording).measured(lambda size: size).read(recording.read({"rows": np.array([20, 30])})).top().tolist()
[2000, 3000]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from memcalc.arrays import Count
from memcalc.reading import Reading
from memcalc.recording import Recording
from memcalc.records import dataclass
from memcalc.symbols import Monomial, terms_of
from memcalc.tape.contenders import Bounds, Extent, Sums
from memcalc.tape.events import Event, Role
from memcalc.tape.forms import forms_of


@dataclass
class MeasuredArrays:
    """What may be the peak in one measure, and what may be a role's own.

    Attributes:
        bounds: products of atoms, and what they are at least and at most.
        total: a sum for each instant.
        roles: the same for each role by itself.
    """

    bounds: Bounds
    total: Sums
    roles: dict[Role, Sums]

    def read(self, reading: Reading) -> ArraysRead:
        """The formulas for some jobs."""
        return ArraysRead(self, reading, Extent(self.bounds.bases, reading))


@dataclass
class ArraysRead:
    """The formulas of one measure, for some jobs.

    Attributes:
        measured: the formulas.
        reading: the jobs.
        extent: what the bases of the formulas' bounds come to for them.
    """

    measured: MeasuredArrays
    reading: Reading
    extent: Extent

    def top(self) -> Count:
        """The peak's bytes, job by job."""
        return self.measured.total.highest(self.reading, self.extent)

    def role_tops(self, roles: Iterable[Role]) -> dict[Role, Count]:
        """Each of these roles' own highest point."""
        own = self.measured.roles
        return {role: own[role].highest(self.reading, self.extent) for role in roles if role in own}


class FormulaArrays:
    """A tape of formulas, walked once.

    Args:
        tape: the events.
        recording: where the formulas of its sizes are.
    """

    def __init__(self, tape: Iterable[Event], recording: Recording) -> None:
        self.recording = recording
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
            bounds = Bounds(self.recording, list(places))
            roles = {role: Sums(bounds, rows @ table) for role, rows in self.forms.roles.items()}
            found = self.read[measure] = MeasuredArrays(bounds, Sums(bounds, self.forms.total @ table), roles)
        return found
