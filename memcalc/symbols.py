"""Numbers that remember how they were made: a job is played once, and its bytes are formulas in the sizes of its batch.

A :class:`Symbol` is a number and the polynomial it is in *atoms*: the sizes that vary, and what is no polynomial of them (a
division rounded up, a choice, a maximum). The same polynomial is one object, so that what is equal is seen to be. A question
about symbols is answered as it is for their numbers, and noted: where other numbers answer every question alike, the same is
done with them, and the formulas hold.

Where they are made is ``memcalc.recording``, and where they are read for other numbers ``memcalc.reading``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from memcalc.arrays import ceil_div, maximum, minimum, not_, where

if TYPE_CHECKING:
    from memcalc.recording import Recording

Monomial: TypeAlias = tuple[int, ...]
"""Atoms multiplied with each other, in order; none for the number that stands alone."""
Terms: TypeAlias = tuple[tuple[Monomial, int], ...]


class NotParametricError(Exception):
    """A number was asked for where a formula is carried along: what follows holds for this number alone."""


class Symbol:
    """A whole number, and the polynomial it is.

    Attributes:
        recording: where its atoms are.
        terms: its monomials and how often each is counted, in order.
        number: what it is for the numbers that are played with.
        least: what it is at least, for any numbers that the recording holds for; None where that is not known.
    """

    __slots__ = ("least", "number", "recording", "terms")
    __array_ufunc__ = None
    dtype = "formula"
    """That it stands for many jobs (``memcalc.arrays.is_array``)."""

    def __init__(self, recording: Recording, terms: Terms, number: int, least: int | None) -> None:
        self.recording, self.terms, self.number, self.least = recording, terms, number, least

    def __add__(self, other: Any) -> Any:
        return self.recording.sum_of(self, other, 1) if other.__class__ in _WHOLE else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self.recording.sum_of(self, other, -1) if other.__class__ in _WHOLE else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __neg__(self) -> Any:
        return self * -1

    def __mul__(self, other: Any) -> Any:
        return self.recording.product_of(self, other) if other.__class__ in _WHOLE else NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        return self.recording.quotient_of(self, other) if other.__class__ in _WHOLE else NotImplemented

    def __rfloordiv__(self, other: Any) -> Any:
        return self.recording.atom(operator.floordiv, other, self)

    def __mod__(self, other: Any) -> Any:
        return self - other * (self // other)

    def __rmod__(self, other: Any) -> Any:
        return other - self * (other // self)

    def __eq__(self, other: object) -> Any:
        return self.recording.compared(operator.eq, self, other) if other.__class__ in _WHOLE else NotImplemented

    def __ne__(self, other: object) -> Any:
        return self.recording.compared(operator.ne, self, other) if other.__class__ in _WHOLE else NotImplemented

    def __lt__(self, other: Any) -> Any:
        return self.recording.compared(operator.lt, self, other) if other.__class__ in _WHOLE else NotImplemented

    def __le__(self, other: Any) -> Any:
        return self.recording.compared(operator.le, self, other) if other.__class__ in _WHOLE else NotImplemented

    def __gt__(self, other: Any) -> Any:
        return self.recording.compared(operator.gt, self, other) if other.__class__ in _WHOLE else NotImplemented

    def __ge__(self, other: Any) -> Any:
        return self.recording.compared(operator.ge, self, other) if other.__class__ in _WHOLE else NotImplemented

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __repr__(self) -> str:
        return f"Symbol({self.number})"

    def _alone(self, *_: Any) -> Any:
        raise NotParametricError(f"{self!r} is asked for as one number")

    __int__ = __index__ = __float__ = __str__ = __format__ = __len__ = __iter__ = _alone


class Condition:
    """A question about symbols, not answered yet.

    Attributes:
        recording: where it is asked.
        place: its number among the recording's atoms.
        answer: what it is for the numbers that are played with.
    """

    __slots__ = ("answer", "place", "recording")
    __array_ufunc__ = None
    dtype = "formula"

    def __init__(self, recording: Recording, place: int, answer: bool) -> None:
        self.recording, self.place, self.answer = recording, place, answer

    def __bool__(self) -> bool:
        self.recording.asked.setdefault(self.place, self.answer)
        return self.answer

    all = any = __bool__

    def __and__(self, other: Any) -> Any:
        return (self if other else False) if isinstance(other, bool) else self.recording.question(operator.and_, self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        return (True if other else self) if isinstance(other, bool) else self.recording.question(operator.or_, self, other)

    __ror__ = __or__

    def __invert__(self) -> Any:
        return self.recording.question(not_, self)


_WHOLE = frozenset((int, bool, Symbol))


def lower(one: Any) -> int | None:
    """What a number is at least, if it cannot be below zero."""
    if isinstance(one, Symbol):
        return one.least if one.least is not None and one.least >= 0 else None
    return one if isinstance(one, int) and one >= 0 else None


def int_of(number: Any) -> int:
    """The number that is played with."""
    return number.number if isinstance(number, Symbol) else number


def is_symbol(value: object) -> bool:
    """Whether a number is a formula."""
    return value.__class__ is Symbol


def terms_of(number: Any) -> Terms:
    """A polynomial's terms; those of a number, too."""
    if isinstance(number, Symbol):
        return number.terms
    return (((), number),) if number else ()


def _least_quotient(how: Callable[[Any, Any], Any]) -> Callable[[Any, Any], int | None]:
    def lowest(first: Any, second: Any) -> int | None:
        least = lower(first)
        return None if least is None or isinstance(second, Symbol) or second <= 0 else how(least, second)

    return lowest


def _least_of_both(first: Any, second: Any) -> int | None:
    one, other = lower(first), lower(second)
    return None if one is None or other is None else min(one, other)


LEAST_OF: dict[Callable[..., Any], Callable[..., int | None]] = {
    ceil_div: _least_quotient(ceil_div),
    operator.floordiv: _least_quotient(operator.floordiv),
    maximum: lambda first, second: max((one for one in (lower(first), lower(second)) if one is not None), default=None),
    minimum: _least_of_both,
    where: lambda condition, yes, no: _least_of_both(yes, no),
}
"""Of functions that make numbers of which it is known what they are at least: that."""
