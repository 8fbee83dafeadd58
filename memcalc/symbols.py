"""Numbers that remember how they were made: a job is played once, and its bytes are formulas in the sizes of its batch.

A :class:`Symbol` is a number and the polynomial it is in *atoms*: the sizes that vary, and what is no polynomial of them (a
division rounded up, a choice, a maximum). The same polynomial is one object, so that what is equal is seen to be. A question
about symbols is answered as it is for their numbers, and noted: where other numbers answer every question alike, the same is
done with them, and the formulas hold.

>>> recording = Recording()
>>> batch, tokens = recording.input("batch", 4), recording.input("tokens", 128)
>>> size = 2 * batch * tokens + 512
>>> int_of(size), size is tokens * batch + 512 + batch * tokens
(1536, True)
>>> bool(batch < tokens)
True
>>> recording.read({"batch": 3, "tokens": 100}).value(size)
1112
>>> recording.read({"batch": 3, "tokens": 2}) is None  # the question has another answer there
True
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from memcalc.arrays import SplitError, ceil_div, is_array, maximum, minimum, not_, where

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


class Recording:
    """What was made of some sizes, step by step.

    Attributes:
        names: the sizes that vary, which are the first atoms.
        steps: what makes each further atom: a function and what it takes.
        numbers: what each atom is for the numbers that are played with.
        asked: the questions that were answered, by the number of their atom.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps: list[tuple[Callable[..., Any], tuple[Any, ...]] | None] = []
        self.numbers: list[Any] = []
        self.asked: dict[int, bool] = {}
        self._symbols: dict[Terms, Symbol] = {}
        self._atoms: dict[Any, int] = {}
        self._held: list[Any] = []

    def input(self, name: str, number: int) -> Symbol:
        """A size that varies, always above one: where an extent is 1, PyTorch often does something else.

        Raises:
            NotParametricError: it is not.
        """
        if number < LEAST:
            raise NotParametricError(f"{name} is {number}")
        assert len(self.names) == len(self.steps), "sizes come first"
        self.names.append(name)
        return self.single(self._new(None, number), LEAST)

    # -- what numbers are made of -------------------------------------------------------------------------------------------

    def sum_of(self, first: Symbol, second: Any, sign: int) -> Any:
        """A sum, or with ``sign`` -1 a difference."""
        terms = dict(first.terms)
        for monomial, count in terms_of(second):
            left = terms.get(monomial, 0) + sign * count
            if left:
                terms[monomial] = left
            else:
                del terms[monomial]
        return self.polynomial(terms, first.number + sign * int_of(second))

    def product_of(self, first: Symbol, second: Any) -> Any:
        """A product."""
        terms: dict[Monomial, int] = {}
        for one, count in first.terms:
            for other, times in terms_of(second):
                both = tuple(sorted((*one, *other))) if one and other else one or other
                terms[both] = terms.get(both, 0) + count * times
        return self.polynomial({key: count for key, count in terms.items() if count}, first.number * int_of(second))

    def quotient_of(self, first: Symbol, second: Any) -> Any:
        """A quotient rounded down; what divides without a remainder stays a polynomial, and rounding up is told as such."""
        if isinstance(second, Symbol) or second <= 0:
            return self.atom(operator.floordiv, first, second)
        whole = self.polynomial({monomial: count // second for monomial, count in first.terms if count % second == 0})
        rest = self.polynomial({monomial: count for monomial, count in first.terms if count % second})
        if not isinstance(rest, Symbol):
            return whole + rest // second
        if rest.number < 0 or max(count for _, count in rest.terms) < 0:
            return whole - self.atom(ceil_div, -rest, second)
        return whole + self.atom(operator.floordiv, rest, second)

    def atom(self, function: Callable[..., Any], *taken: Any) -> Symbol:
        """What a function of whole numbers makes of symbols; the function takes arrays as well."""
        place = self._made(function, taken)
        lowest = _LEAST.get(function)
        return self.single(place, None if lowest is None else lowest(*taken))

    def atoms(self, count: int, function: Callable[..., Any], *taken: Any) -> tuple[Symbol, ...]:
        """What a function makes that gives several numbers, none of them below zero."""
        several = _Made(self._made(function, taken))
        return tuple(self.single(self._made(operator.getitem, (several, number)), 0) for number in range(count))

    # -- what is asked --------------------------------------------------------------------------------------------------------

    def compared(self, how: Callable[[Any, Any], Any], first: Symbol, second: Any) -> bool | Condition:
        """A comparison, told at once where it is the same for all numbers."""
        difference = first - second
        if not isinstance(difference, Symbol):
            return bool(how(difference, 0))
        if difference.least is not None and (difference.least > 0 or (difference.least == 0 and how in _SURE_AT_ZERO)):
            return bool(how(1, 0))
        opposite = -difference
        if opposite.least is not None and (opposite.least > 0 or (opposite.least == 0 and how in _SURE_BELOW_ZERO)):
            return bool(how(-1, 0))
        return self.question(how, difference, 0)

    def question(self, function: Callable[..., Any], *taken: Any) -> Condition:
        """A question about symbols or other questions."""
        place = self._made(function, taken)
        return Condition(self, place, bool(self.numbers[place]))

    # -- as numpy has them, for memcalc.arrays --------------------------------------------------------------------------------

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        """``yes`` where the condition holds, ``no`` elsewhere."""
        return yes if yes is no else self.atom(where, condition, yes, no)

    def maximum(self, first: Any, second: Any) -> Any:
        """The larger of two."""
        return self._of_two(maximum, first, second, first >= second)

    def minimum(self, first: Any, second: Any) -> Any:
        """The smaller of two."""
        return self._of_two(minimum, first, second, first <= second)

    def _of_two(self, function: Callable[..., Any], first: Any, second: Any, wins: Any) -> Any:
        return (first if wins else second) if isinstance(wins, bool) else self.atom(function, first, second)

    # -- inside ---------------------------------------------------------------------------------------------------------------

    def _new(self, step: tuple[Callable[..., Any], tuple[Any, ...]] | None, number: Any) -> int:
        self.steps.append(step)
        self.numbers.append(number)
        return len(self.steps) - 1

    def _made(self, function: Callable[..., Any], taken: Sequence[Any]) -> int:
        """The atom that a function makes of these; the same of the same."""
        key = (function, *(_key(one) for one in taken))
        found = self._atoms.get(key)
        if found is None:
            self._held += taken  # what a key tells by identity stays alive with it
            numbers = [self._number_of(one) for one in taken]
            found = self._atoms[key] = self._new((function, tuple(taken)), function(*numbers))
        return found

    def _number_of(self, one: Any) -> Any:
        if isinstance(one, _Made):
            return self.numbers[one.place]
        return one.answer if isinstance(one, Condition) else int_of(one)

    def _product(self, monomial: Monomial) -> int:
        found = 1
        for place in monomial:
            found *= self.numbers[place]
        return found

    def polynomial(self, terms: dict[Monomial, int], number: int | None = None) -> Any:
        """A sum of terms, each counted so many times; ``number`` is what it comes to, where that is known already."""
        if not terms or (len(terms) == 1 and () in terms):
            return terms.get((), 0)
        key = tuple(sorted(terms.items()))
        found = self._symbols.get(key)
        if found is None:
            if number is None:
                number = sum(count * self._product(monomial) for monomial, count in key)
            found = self._symbols[key] = Symbol(self, key, number, self._least(key))
        return found

    def single(self, place: int, least: int | None = None) -> Symbol:
        """The symbol that an atom is."""
        terms: Terms = (((place,), 1),)
        found = self._symbols.get(terms)
        if found is None:
            found = self._symbols[terms] = Symbol(self, terms, self.numbers[place], least)
        return found

    def _least(self, terms: Terms) -> int | None:
        """What a polynomial is at least: known where it only adds up what cannot be below zero."""
        total = 0
        for monomial, count in terms:
            for place in monomial:
                least = self._symbols[(((place,), 1),)].least
                if least is None or least < 0 or count < 0:
                    return None
                count *= least
            total += count
        return total

    def rounding_of(self, place: int) -> tuple[Symbol, int] | None:
        """(number, divisor) of an atom that is a quotient rounded up; None for another."""
        step = self.steps[place]
        if step is None or step[0] is not ceil_div or not is_symbol(step[1][0]) or is_symbol(step[1][1]):
            return None
        return step[1]

    def read(self, sizes: Mapping[str, Any]) -> Reading | None:
        """The formulas for other numbers, or for arrays of them; None where a question has another answer there.

        Raises:
            SplitError: some of the jobs answer a question otherwise than others.
        """
        return Reading.of(self, sizes)


class Reading:
    """The formulas of a recording for other numbers.

    Attributes:
        values: what each atom that was needed is.
        many: whether they are for many jobs at once.
    """

    def __init__(self, recording: Recording, sizes: Mapping[str, Any]) -> None:
        self.recording = recording
        self.values: dict[int, Any] = {place: sizes[name] for place, name in enumerate(recording.names)}
        self.many = any(map(is_array, sizes.values()))

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
        found: Any = 1
        for place in monomial:
            found = found * self.atom(place)
        return found

    def value(self, one: Any) -> Any:
        """What a symbol is, or a question; a plain number is itself."""
        if one.__class__ is Symbol:
            values = self.values
            total: Any = 0
            for monomial, count in one.terms:
                for place in monomial:
                    found = values.get(place)
                    count = count * (self.atom(place) if found is None else found)
                total = total + count
            return total
        return self.atom(one.place) if one.__class__ is Condition or one.__class__ is _Made else one


class _Made:
    """What a function gave that gives several numbers."""

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place = place


def lower(one: Any) -> int | None:
    """What a number is at least, if it cannot be below zero."""
    if isinstance(one, Symbol):
        return one.least if one.least is not None and one.least >= 0 else None
    return one if isinstance(one, int) and one >= 0 else None


def _least_quotient(how: Callable[[Any, Any], Any]) -> Callable[[Any, Any], int | None]:
    def lowest(first: Any, second: Any) -> int | None:
        least = lower(first)
        return None if least is None or isinstance(second, Symbol) or second <= 0 else how(least, second)

    return lowest


def _least_of_both(first: Any, second: Any) -> int | None:
    one, other = lower(first), lower(second)
    return None if one is None or other is None else min(one, other)


_LEAST: dict[Callable[..., Any], Callable[..., int | None]] = {
    ceil_div: _least_quotient(ceil_div),
    operator.floordiv: _least_quotient(operator.floordiv),
    maximum: lambda first, second: max((one for one in (lower(first), lower(second)) if one is not None), default=None),
    minimum: _least_of_both,
    where: lambda condition, yes, no: _least_of_both(yes, no),
}
"""Of functions that make numbers of which it is known what they are at least: that."""
_SURE_AT_ZERO = frozenset((operator.ge, operator.lt))
"""Comparisons with zero that zero answers as what is above it."""
_SURE_BELOW_ZERO = frozenset((operator.le, operator.gt))
"""Those that zero answers as what is below it."""
LEAST = 2


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


def _key(one: Any) -> Any:
    """What tells one argument from another: symbols by their polynomial, which is one object, questions by their atom."""
    if isinstance(one, Symbol):
        return one.terms
    return (one.__class__, one.place) if isinstance(one, Condition | _Made) else (one.__class__, one)
