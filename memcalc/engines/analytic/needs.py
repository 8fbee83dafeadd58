"""What the optimizer's step needs for a moment, as buffers on the tape: each moment's own, live together and then gone."""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.arrays import Condition, Count, both, where
from memcalc.models import Model
from memcalc.optimizers.base import Param, Temporary
from memcalc.parallelism.base import Layout
from memcalc.plan import Plan
from memcalc.tape.events import Buffer

Needs = list[tuple[Buffer, Count]]


def step_needs(plan: Plan, layout: Layout, model: Model) -> dict[str, Needs]:
    """Moment -> buffers live at it, by the same fold as ``memcalc.optimizers.step.step_bytes``.

    A tensor that is processed in turn is live beside what the one before it left; where the optimizer is called for one
    parameter at a time (``layout.in_turn``) nothing is left, and a list over all parameters is a list of one. Nothing is said
    of the largest tensor of a model whose shapes are not known.
    """
    if plan.optimizer.temporaries is None:
        return {}
    together: dict[str, Needs] = {}
    worst: dict[str, _Worst] = {}
    for param in layout.params:
        for moment, terms in _by_moment(plan.optimizer.temporaries(param, plan.options, plan.implementation)).items():
            held = together.setdefault(moment, [])
            lists = [term for term in terms if term.over == "sum"]
            if not layout.in_turn:
                held += [(_buffer(param.name, term), param.count * term.count) for term in lists]
                terms = [term for term in terms if term.over != "sum"]
            worst.setdefault(moment, _Worst(in_turn=layout.in_turn)).meet(param, terms)
    if not model.shapes_known:
        return {moment: held for moment, held in together.items() if held}
    return {moment: held + worst[moment].buffers() for moment, held in together.items()}


Live = dict[tuple[str, int], tuple[Count, Count]]
"""(what a buffer holds, which of several of that name) -> (bytes of one, how many)."""


class _Worst:
    """The one parameter, with what the one before it left, that needs most at some moment."""

    def __init__(self, *, in_turn: bool) -> None:
        self.in_turn = in_turn
        self.most: Count = -1
        self.own: Live = {}
        self.beside: Live = {}
        self.left: Live = {}

    def meet(self, param: Param, terms: list[Temporary]) -> None:
        """One more parameter, in the step's order; ``count`` equal ones follow each other."""
        own = _live(term for term in terms if term.over != "previous")
        leaves = _live(term for term in terms if term.over == "previous") if not self.in_turn else {}
        self.consider(param.count > 0, own, self.left)
        self.consider(param.count > 1, own, leaves)
        self.left = _either(param.count > 0, leaves, self.left)

    def consider(self, possible: Condition, own: Live, left: Live) -> None:
        """Keep these buffers where they are more than the most so far."""
        total = sum((nbytes * count for nbytes, count in (*own.values(), *left.values())), 0)
        better = both(possible, total > self.most)
        self.most = where(better, total, self.most)
        self.own, self.beside = _either(better, own, self.own), _either(better, left, self.beside)

    def buffers(self) -> Needs:
        """Them, under names that say whose they are."""
        named = [("largest", self.own), ("left beside the largest:", self.beside)]
        return [
            (Buffer(f"{whose} {name}", nbytes, "temporary"), count)
            for whose, live in named
            for (name, _), (nbytes, count) in live.items()
        ]


def _live(terms: Iterable[Temporary]) -> Live:
    return {(term.name, index): (term.nbytes, term.count) for index, term in enumerate(terms)}


def _either(condition: Condition, yes: Live, no: Live) -> Live:
    chosen: Live = {}
    for key in {**yes, **no}:
        (size, count), (other_size, other_count) = yes.get(key, (0, 0)), no.get(key, (0, 0))
        chosen[key] = (where(condition, size, other_size), where(condition, count, other_count))
    return chosen


def _by_moment(terms: Iterable[Temporary]) -> dict[str, list[Temporary]]:
    moments: dict[str, list[Temporary]] = {}
    for term in terms:
        moments.setdefault(term.moment, []).append(term)
    return moments


def _buffer(owner: str, term: Temporary) -> Buffer:
    return Buffer(f"{owner} {term.name}", term.nbytes, "temporary")
