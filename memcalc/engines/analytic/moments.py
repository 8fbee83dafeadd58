"""Moments of a played step at which an engine of parallelism does something that differs from layer to layer.

A gather or a bucket of one layer is not that of the next: where what is done depends on what came before it, layers that are
alike on the tape are alike no more. The machine then but marks the moment, with a buffer of no bytes that is born and dies
there; whoever reads the tape writes repetition out and puts what happens in the moment's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from memcalc.play.around import Hooks
from memcalc.play.graph import Leaf
from memcalc.play.machine import Machine
from memcalc.play.values import Life, Shape
from memcalc.tape.events import Alloc, Event, Free, Mark, Repeat

GRADIENT, END = "a gradient came", "the end of backward"
"""What is marked: that a parameter's gradient is there, under the parameter's name; and that all are."""

REDUCTION_STREAM = 1
"""The number by which the stream of ``overlap_comm`` is told from the one that computes (deepspeed 0.19.8
runtime/zero/stage_1_and_2.py, stage3.py: reduction_stream, reduce_and_partition_stream)."""
Told = Callable[[Event], Sequence[Event]]
"""What a reader puts in the place of one event; of a moment, in that of its birth."""


class Gradients(Hooks):
    """Marks every gradient as it comes, and the end of backward.

    Args:
        given_up: whether ``.grad`` is let go of there and then, so that the next micro-batch finds none.
    """

    def __init__(self, given_up: bool) -> None:
        self.given_up = given_up

    def on_gradient(self, machine: Machine, leaf: Leaf) -> None:
        """The moment, and right before it the gradient's death where it is given up."""
        if self.given_up:
            leaf.gradient = None
        mark(machine, GRADIENT, leaf.name, leaf.shape)

    def end_of_backward(self, machine: Machine) -> None:
        """The moment."""
        mark(machine, END, END)


def mark(machine: Machine, kind: str, name: str, shape: Shape | None = None) -> None:
    """A moment of that kind, here on the tape."""
    life = Life(0, kind, machine.path, "temporary", name, shape)
    machine.tape += [(1, life), (-1, life)]


def written(events: Iterable[Event], kinds: frozenset[str], told: Told) -> list[Event]:
    """A tape in which every event is replaced by what a reader says, repetition written out wherever a moment is inside.

    Turns that come out alike are one turn and a number again.
    """
    found: list[Event] = []
    for event in events:
        if not isinstance(event, Repeat):
            if not (isinstance(event, Free) and event.buffer.operator in kinds):
                found += told(event)
        elif not _any_moment(event.body, kinds):
            found.append(event)
        else:
            found += _turns(event, kinds, told)
    return found


def _turns(event: Repeat, kinds: frozenset[str], told: Told) -> list[Event]:
    turns: list[tuple[int, list[Event]]] = []
    for _ in range(int(event.times)):
        turn = written(event.body, kinds, told)
        if turns and _same(turns[-1][1], turn):
            turns[-1] = (turns[-1][0] + 1, turn)
        else:
            turns.append((1, turn))
    found: list[Event] = []
    for times, turn in turns:
        found += turn if times == 1 else [Repeat(times, tuple(turn))]
    return found


def _same(first: list[Event], second: list[Event]) -> bool:
    """Whether two turns are one: the very same events."""
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def _any_moment(body: Iterable[Event], kinds: frozenset[str]) -> bool:
    return any(
        _any_moment(event.body, kinds)
        if isinstance(event, Repeat)
        else not isinstance(event, Mark) and event.buffer.operator in kinds
        for event in body
    )


def is_moment(event: Event, kind: str) -> bool:
    """Whether an event is the moment of that kind."""
    return isinstance(event, Alloc) and event.buffer.operator == kind
