"""A recording's formulas for other numbers: what each atom, product or polynomial is for one job, or for many at once.

>>> from memcalc.recording import Recording
>>> recording = Recording()
>>> rows = recording.input("rows", 4)
>>> Reading(recording, {"rows": 9}).value(rows * rows + 1)
82
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memcalc.arrays import SplitError, is_array
from memcalc.symbols import Condition, Monomial, Symbol

if TYPE_CHECKING:
    from memcalc.recording import Recording


class Reading:
    """The formulas of a recording for other numbers.

    Attributes:
        values: what each atom that was needed is.
        jobs: how many they are for; sizes that differ are arrays of so many.
    """

    def __init__(self, recording: Recording, sizes: Mapping[str, Any]) -> None:
        self.recording = recording
        self.values: dict[int, Any] = {place: sizes[name] for place, name in enumerate(recording.names)}
        self.jobs = max((len(size) for size in sizes.values() if is_array(size)), default=1)
        self._products: dict[Monomial, Any] = {}
        self._ends: dict[Monomial, tuple[int, int]] = {}

    @classmethod
    def of(cls, recording: Recording, sizes: Mapping[str, Any]) -> Reading | None:
        """The reading, if the recording holds for these sizes."""
        reading = cls(recording, sizes)
        for place, answer in recording.asked.items():
            found = reading.atom(place)
            if not is_array(found):
                if bool(found) is not answer:
                    return None
            elif not (found if answer else ~found).all():
                if (~found if answer else found).all():
                    return None
                raise SplitError(found)
        return reading

    def pieces(self, jobs: int) -> Iterator[tuple[slice, Reading]]:
        """The same for so many of the jobs at a time, each with where they stand among all.

        What is made of some thousand jobs stays in the processor's cache, where a hundred thousand's passes through memory.
        """
        sizes = {name: self.values[place] for place, name in enumerate(self.recording.names)}
        for start in range(0, self.jobs, jobs):
            mine = slice(start, start + jobs)
            yield mine, Reading(self.recording, {name: size[mine] if is_array(size) else size for name, size in sizes.items()})

    def atom(self, place: int) -> Any:
        """What an atom is."""
        found = self.values.get(place)
        if found is None:
            step = self.recording.steps[place]
            assert step is not None
            function, taken = step
            found = self.values[place] = function(*[self.value(one) for one in taken])
        return found

    def monomial(self, monomial: Monomial) -> Any:
        """What a product of atoms is."""
        found = self._products.get(monomial)
        if found is None:
            found = 1
            for place in monomial:
                found = found * self.atom(place)
            self._products[monomial] = found
        return found

    def ends(self, monomial: Monomial) -> tuple[int, int]:
        """What a product of atoms is at least, and at most, in any of the jobs."""
        found = self._ends.get(monomial)
        if found is None:
            value = self.monomial(monomial)
            found = self._ends[monomial] = (value.min(), value.max()) if is_array(value) else (value, value)
        return found

    def value(self, one: Any) -> Any:
        """What a symbol is, or a question; a plain number is itself."""
        if one.__class__ is Symbol:
            if self.jobs > 1:
                return sum([count * self.monomial(monomial) for monomial, count in one.terms])
            values = self.values
            total: Any = 0
            for monomial, count in one.terms:
                for place in monomial:
                    found = values.get(place)
                    count = count * (self.atom(place) if found is None else found)
                total = total + count
            return total
        return self.atom(one.place) if one.__class__ is Condition or one.__class__ is Made else one


class Made:
    """What a function gave that gives several numbers."""

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place = place
