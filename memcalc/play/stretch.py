"""What stands for many alike: a stretch of a tape that is repeated, and the section of nodes it was made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.values import Life, Value
from memcalc.tape.events import Event

if TYPE_CHECKING:
    from memcalc.play.graph import Node


def life_of(grads: Sequence[Value | None]) -> Life | None:
    """The memory of the first gradient there is."""
    return next((value.storage.life for value in grads if value is not None), None)


def lives_due(due: Mapping[Node, Sequence[Value | None]]) -> dict[str, Life]:
    """The memory of the gradients that wait, by node and result; a node waits as long as any of its gradients is to come."""
    return {
        f"{id(node)}.{index}": value.storage.life
        for node, values in due.items()
        for index, value in enumerate(values)
        if value is not None
    }


class Section:
    """Nodes that stand for ``times`` as many: those made from ``first`` to ``last``."""

    def __init__(self, first: int, times: Count) -> None:
        self.first, self.last, self.times = first, first, times
        self.outer: list[Any] = []
        self.given: Life | None = None
        self.waiting: Life | None = None
        self.held: dict[str, Life] = {}
        self.due: dict[str, Life] = {}


class Told:
    """Events of a tape that are known as they are, as those of an optimizer's step inside backward.

    Attributes:
        events: what happens.
        first: whether it happens in the first iteration alone.
    """

    __slots__ = ("events", "first")

    def __init__(self, events: Sequence[Event], *, first: bool = False) -> None:
        self.events, self.first = tuple(events), first


class Stretch:
    """A part of a tape that is repeated.

    Attributes:
        times: how often.
        body: the part.
        carried: (life that the first turn is given, life that each turn gives to the next).
    """

    __slots__ = ("body", "carried", "times")

    def __init__(self, times: Count, body: list[Any], carried: tuple[tuple[Life, Life], ...]) -> None:
        self.times, self.body, self.carried = times, body, carried
