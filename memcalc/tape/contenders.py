"""The highest of many sums for each of many jobs: those that cannot be it are told apart before any is worked out.

A sum counts products of atoms. What is rounded up follows what it was, and a choice of two numbers lies between them, so that
a sum lies between two others of fewer products, the *bases*. A sum that is at most what another is at least, wherever between
their least and their greatest the bases are, is never the highest: of a hundred instants a few are left, and nothing is worked
out that only the others count.

>>> from memcalc.recording import Recording
>>> recording = Recording()
>>> rows = recording.input("rows", 10)
>>> bounds = Bounds(recording, [(), *(one for one, _ in rows.terms)])
>>> sums = Sums(bounds, np.array([[4000, 2], [0, 7], [100, 1]]))
>>> few = recording.read({"rows": np.array([20, 30])})
>>> sums.contenders(Extent(bounds.bases, few)).tolist(), sums.highest(few, Extent(bounds.bases, few)).tolist()
([0], [4040, 4060])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from memcalc.arrays import Count, maximum
from memcalc.reading import Reading
from memcalc.recording import Recording
from memcalc.symbols import Monomial

Table: TypeAlias = np.ndarray[Any, Any]
SLACK = 2.0**-40
"""What sums of float64 may be off, in parts of what they add up: some hundred products of three factors each, with room."""
SAMPLES = 8
"""Points between the bases' least and their greatest at which the highest sums are looked for, which all are held against."""


class Bounds:
    """What products of atoms are at least and at most, as sums over fewer of them.

    Attributes:
        monomials: the products.
        bases: those that the bounds are made of.
        lower: a row for each product, how often each base counts in what it is at least.
        upper: the same of what it is at most.
    """

    def __init__(self, recording: Recording, monomials: Sequence[Monomial]) -> None:
        self.monomials = monomials
        places: dict[Monomial, int] = {(): 0}
        cells: list[tuple[int, int, float, float]] = []
        for row, monomial in enumerate(monomials):
            for base, low, high in _between(recording, monomial):
                cells.append((row, places.setdefault(base, len(places)), low, high))
        self.bases = list(places)
        self.lower, self.upper = np.zeros((2, len(monomials), len(places)))
        for row, place, low, high in cells:
            self.lower[row, place] += low
            self.upper[row, place] += high


def _between(recording: Recording, monomial: Monomial) -> list[tuple[Monomial, float, float]]:
    """(base, how often it counts at least, at most): a number rounded up follows the number, a choice lies between the two."""
    if len(monomial) == 1:
        if (choice := recording.choice_of(monomial[0])) is not None:
            return [((), min(choice), max(choice))]
        if (rounding := recording.rounding_of(monomial[0])) is not None and rounding[1] > 0:
            number, divisor = rounding
            each = [(base, count / divisor, count / divisor) for base, count in number.terms]
            return [*each, ((), 0.0, (divisor - 1) / divisor)]
    return [(monomial, 1.0, 1.0)]


class Extent:
    """What the bases come to for some jobs.

    Attributes:
        low: the least of each.
        high: the greatest.
    """

    def __init__(self, bases: Sequence[Monomial], reading: Reading) -> None:
        self.low, self.high = np.array([reading.ends(base) for base in bases], dtype=np.float64).T


class Sums:
    """Some sums, of which the highest is wanted.

    Args:
        bounds: what the products are at least and at most.
        counts: int64, a row for each sum, how often each product counts.
    """

    def __init__(self, bounds: Bounds, counts: Table) -> None:
        self.bounds, self.counts = bounds, counts
        up, down = np.maximum(counts, 0).astype(np.float64), np.minimum(counts, 0).astype(np.float64)
        self.least = up @ bounds.lower + down @ bounds.upper
        self.most = up @ bounds.upper + down @ bounds.lower
        self.size = (up - down) @ np.maximum(abs(bounds.lower), abs(bounds.upper))
        """What was added up for either of them, without signs."""
        self._terms: dict[int, list[tuple[Monomial, int]]] = {}

    def highest(self, reading: Reading, extent: Extent) -> Count:
        """The largest of the sums, and of 0, job by job.

        Args:
            reading: the jobs.
            extent: what the bases come to for them.
        """
        most: Count = 0
        for place in self.contenders(extent).tolist():
            most = maximum(most, self.total(place, reading))
        return most

    def contenders(self, extent: Extent) -> Table:
        """The sums that may be the highest of one of the jobs: at least one, if there is any."""
        if len(self.counts) < 2:
            return np.arange(len(self.counts))
        left = np.arange(len(self.counts))
        wide = extent.high - extent.low
        largest = np.maximum(abs(extent.low), abs(extent.high))
        for one, other in self._in_front(extent):
            # the higher of two is no less than any mean of both: of the means, the one that rises as each sum does
            steps = self.least[one] - self.least[other]
            base = np.argmax(abs(steps) * wide)
            share = np.clip((self.most[left, base] - self.least[other, base]) / (steps[base] or 1), 0, 1)[:, None]
            more = self.most[left] - share * self.least[one] - (1 - share) * self.least[other]
            ahead = np.maximum(more, 0) @ extent.high + np.minimum(more, 0) @ extent.low
            unsure = SLACK * ((self.size[left] + self.size[one] + self.size[other]) @ largest)
            left = left[ahead >= -unsure]
        return left

    def _in_front(self, extent: Extent) -> list[tuple[int, int]]:
        """Pairs of sums, each the highest somewhere between the bases' least and their greatest, in that order."""
        between = extent.low[:, None] + (extent.high - extent.low)[:, None] * np.linspace(0, 1, SAMPLES)
        first = list(dict.fromkeys(np.argmax(self.least @ between, axis=0).tolist()))
        return [(first[0], first[0]), *pairwise(first)]

    def total(self, place: int, reading: Reading) -> Count:
        """One of the sums, job by job."""
        if place not in self._terms:
            counts = self.counts[place].tolist()
            self._terms[place] = [(one, count) for one, count in zip(self.bounds.monomials, counts, strict=True) if count]
        total: Any = 0
        for monomial, count in self._terms[place]:
            value = reading.monomial(monomial)
            total = total + (value if count == 1 else count * value)
        return total  # type: ignore[no-any-return]
