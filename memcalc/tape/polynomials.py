"""Sums of polynomials over sizes that nobody has named yet, and which of them may be the highest.

>>> from memcalc.recording import Recording
>>> recording = Recording()
>>> rows = recording.input("rows", 10)
>>> polynomials = Polynomials(recording, [3 * rows, 2 * rows, rows * rows])
>>> [place for place, _ in polynomials.highest(np.eye(3, dtype=np.int64))]
[0, 2]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from memcalc.recording import Recording
from memcalc.symbols import Monomial, NotParametricError, lower, terms_of

Table: TypeAlias = Any
"""A matrix of whole numbers."""
Total: TypeAlias = tuple[tuple[int, int], ...]
"""A polynomial: which of some monomials, and how often each is counted."""
WIDE = 2.0**62
"""Numbers from here on may not fit int64, and are reckoned with in Python's."""


class Polynomials:
    """Sums of polynomials, and which of them may be the highest.

    Attributes:
        recording: where the formulas are.
        monomials: all that the polynomials have.
        table: a row for each of the polynomials.
    """

    def __init__(self, recording: Recording, summands: Sequence[Any]) -> None:
        self.recording = recording
        self.monomials, self.table = _matrix([dict(terms_of(one)) for one in summands])
        self.divisor = math.lcm(*(rounding[1] for rounding in map(recording.rounding_of, self._atoms()) if rounding), 1)
        lower_bounds, upper_bounds = ([self._bound(one, upper=upper) for one in self.monomials] for upper in (False, True))
        self.bases, both = _matrix([*lower_bounds, *upper_bounds])
        self.lower, self.upper = both[: len(self.monomials)], both[len(self.monomials) :]
        for place in sorted({place for monomial in (*self.monomials, *self.bases) for place in monomial}):
            require_size(recording.single(place))
        self.sure, self.sure_monomials = (
            np.array([self._is_sure(one) for one in listed], dtype=bool) for listed in (self.bases, self.monomials)
        )

    def highest(self, rows: Table) -> list[tuple[int, Total]]:
        """(number of a row, its polynomial) of the sums that may be the highest, whatever quotients are rounded to."""
        if not len(rows):
            return []
        sums = _times(rows, self.table)
        first = first_highest(sums, sums, self.sure_monomials)
        sums = sums[first]
        positive, negative = np.maximum(sums, 0), np.minimum(sums, 0)
        least = _times(positive, self.lower) + _times(negative, self.upper)
        most = _times(positive, self.upper) + _times(negative, self.lower)
        found = []
        for place in first_highest(least, most, self.sure):
            counts = sums[place].tolist()
            found.append((first[place], tuple((number, count) for number, count in enumerate(counts) if count)))
        return found

    def _atoms(self) -> set[int]:
        return {place for monomial in self.monomials for place in monomial}

    def _is_sure(self, monomial: Monomial) -> bool:
        """Whether a product is above zero for all sizes."""
        return all(at_least(self.recording.single(place)) > 0 for place in monomial)

    def _bound(self, monomial: Monomial, *, upper: bool) -> dict[Monomial, int]:
        """The divisor times a product with its quotients not rounded up, or rounded up as far as may be."""
        product: dict[Monomial, int] = {(): self.divisor}
        for place in monomial:
            rounding = self.recording.rounding_of(place)
            factor: dict[Monomial, int] = {(place,): 1}
            if rounding is not None and not any(count % rounding[1] for count in product.values()):
                number, divisor = rounding
                product = {one: count // divisor for one, count in product.items()}
                factor = dict(number.terms)
                if upper:
                    factor[()] = factor.get((), 0) + divisor - 1
            product = _multiplied(product, factor)
        return product


def first_highest(least: Table, most: Table, sure: Table) -> list[int]:
    """The rows that may be the highest, or the first of several that are, in their order.

    A row goes that is at most what another is at least, term by term, if that stands before it or is higher for ``sure``.
    """
    kept: list[int] = []
    lows = np.empty_like(least)
    order = np.argsort(-most.astype(np.float64).sum(axis=1), kind="stable")
    for place in order.tolist():
        others = lows[: len(kept)]
        covered = (others >= most[place]).all(axis=1)
        if covered.any():
            higher = (others[covered][:, sure] > most[place][sure]).any(axis=1)
            earlier = np.array(kept)[covered] < place
            if (higher | earlier).any():
                continue
        lows[len(kept)] = least[place]
        kept.append(place)
    return sorted(kept)


def _matrix(rows: Sequence[dict[Monomial, int]]) -> tuple[list[Monomial], Table]:
    """(monomials, a row of counts for each sum)."""
    places: dict[Monomial, int] = {}
    for row in rows:
        for monomial in row:
            places.setdefault(monomial, len(places))
    wide = any(abs(count) >= WIDE for row in rows for count in row.values())
    table = np.zeros((len(rows), len(places)), dtype=object if wide else np.int64)
    for number, row in enumerate(rows):
        for monomial, count in row.items():
            table[number, places[monomial]] = count
    return list(places), table


def _times(first: Table, second: Table) -> Table:
    """A product of matrices that does not wrap around."""
    if first.dtype != object and second.dtype != object:
        most = np.abs(first).astype(np.float64) @ np.abs(second).astype(np.float64)
        if not most.size or most.max() < WIDE:
            return first @ second
    return first.astype(object) @ second.astype(object)


def _multiplied(first: dict[Monomial, int], second: dict[Monomial, int]) -> dict[Monomial, int]:
    found: dict[Monomial, int] = {}
    for one, count in first.items():
        for other, times in second.items():
            both = tuple(sorted((*one, *other)))
            found[both] = found.get(both, 0) + count * times
    return found


def at_least(size: Any) -> int:
    """What a number is at least; 0 where that is not known."""
    return lower(size) or 0


def require_size(size: Any) -> None:
    """That a number is no less than zero, which is asked and holds wherever the formulas are read.

    Raises:
        NotParametricError: it is.
    """
    if lower(size) is None and not size >= 0:
        raise NotParametricError("a size is below zero")
