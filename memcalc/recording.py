"""What was made of some sizes, step by step, and the same for other sizes: what ``memcalc.symbols`` are formulas of.

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
from typing import Any

from memcalc.arrays import ceil_div, is_array, maximum, minimum, where
from memcalc.reading import Made, Reading
from memcalc.symbols import LEAST_OF, Condition, Monomial, NotParametricError, Symbol, Terms, int_of, is_symbol, terms_of


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
        lowest = LEAST_OF.get(function)
        return self.single(place, None if lowest is None else lowest(*taken))

    def atoms(self, count: int, function: Callable[..., Any], *taken: Any) -> tuple[Symbol, ...]:
        """What a function makes that gives several numbers, none of them below zero."""
        several = Made(self._made(function, taken))
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
        if isinstance(one, Made):
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

    def choice_of(self, place: int) -> tuple[int, int] | None:
        """The two numbers of which an atom is one; None for another."""
        step = self.steps[place]
        if step is None or step[0] is not where or is_array(step[1][1]) or is_array(step[1][2]):
            return None
        return step[1][1:]

    def read(self, sizes: Mapping[str, Any]) -> Reading | None:
        """The formulas for other numbers, or for arrays of them; None where a question has another answer there.

        Raises:
            SplitError: some of the jobs answer a question otherwise than others.
        """
        return Reading.of(self, sizes)


_SURE_AT_ZERO = frozenset((operator.ge, operator.lt))
"""Comparisons with zero that zero answers as what is above it."""
_SURE_BELOW_ZERO = frozenset((operator.le, operator.gt))
"""Those that zero answers as what is below it."""
LEAST = 2


def _key(one: Any) -> Any:
    """What tells one argument from another: symbols by their polynomial, which is one object, questions by their atom."""
    if isinstance(one, Symbol):
        return one.terms
    return (one.__class__, one.place) if isinstance(one, Condition | Made) else (one.__class__, one)
