"""Unroll: a tape as the flat stream of events it stands for, one after another, for readers that cannot add stretches up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, Generic, TypeAlias, TypeVar

from memcalc.errors import InputError
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark, Repeat

Leaf: TypeAlias = Alloc | Free | Mark
_T = TypeVar("_T")


def unroll(tape: Iterable[Event]) -> Iterator[Leaf]:
    """The events of a tape of one job, every repetition written out.

    A repeated ``Alloc`` comes out as that many events that share one ``Buffer`` object: so many buffers alike, alive together.
    A ``Free`` names no one of them. Readers that must choose give back the youngest: the last in is the first out, as
    ``within`` nests them. Which of several equal buffers dies changes no count of live bytes, as the fold has it too.

    Raises:
        InputError: a repetition's count is an array, of a tape that stands for many jobs, or is negative.

    >>> from memcalc.tape.events import Buffer
    >>> layer = Alloc(Buffer("layer", 1000, "activation"))
    >>> [type(event).__name__ for event in unroll([Mark("forward"), Repeat(2, (Repeat(2, (layer,)), Free(layer.buffer)))])]
    ['Mark', 'Alloc', 'Alloc', 'Free', 'Alloc', 'Alloc', 'Free']
    """
    for event in tape:
        if not isinstance(event, Repeat):
            yield event
            continue
        times, body = turns(event), event.body
        if len(body) == 1 and not isinstance(body[0], Repeat):
            yield from repeat(body[0], times)
        else:
            for _ in range(times):
                yield from unroll(body)


def turns(event: Repeat) -> int:
    """How often a body of one job's tape is repeated.

    Raises:
        InputError: the count is an array, of a tape that stands for many jobs, or is negative.
    """
    times = event.times
    if not isinstance(times, int):
        if getattr(times, "ndim", 1):
            raise InputError("tape.times", times, "stands for many jobs", "unroll the tape of one job")
        times = int(times)
    if times < 0:
        raise InputError("tape.times", times, "is negative", "repeat a body 0 times or more")
    return times


class Pairs(Generic[_T]):
    """What each live buffer was given. Buffers are told apart by identity; of one object, the last in is the first out.

    Attributes:
        given: by identity: (buffer, which is held so that no other can take its identity, what it was given, entry below).
    """

    def __init__(self) -> None:
        self.given: dict[int, Any] = {}

    def add(self, buffer: Buffer, given: _T) -> None:
        """A buffer is born."""
        key = id(buffer)
        self.given[key] = (buffer, given, self.given.get(key))

    def take_below(self, buffer: Buffer, event: int, below: int) -> _T:
        """What a buffer was given of which ``below`` younger ones stay."""
        above = [self.take(buffer, event) for _ in range(below)]
        found = self.take(buffer, event)
        for given in reversed(above):
            self.add(buffer, given)
        return found

    def take(self, buffer: Buffer, event: int, entry: Any = None) -> _T:
        """What the youngest live buffer of that identity was given, or of an equal one where there is none.

        Args:
            buffer: the one that dies.
            event: which event it is, for the error.
            entry: the identity's entry, if it is popped already.
        """
        key = id(buffer)
        entry = entry or self.given.pop(key, None)
        if entry is None:
            key = next((key for key in reversed(self.given) if self.given[key][0] == buffer), 0)
            if not key:
                raise InputError(
                    f"tape.events[{event}]", buffer.site, "is freed and was not alive", "allocate it first, and free it once"
                )
            entry = self.given.pop(key)
        if entry[2] is not None:
            self.given[key] = entry[2]
        found: _T = entry[1]
        return found

    def __iter__(self) -> Iterator[tuple[Buffer, _T]]:
        for entry in self.given.values():
            while entry is not None:
                yield entry[0], entry[1]
                entry = entry[2]
