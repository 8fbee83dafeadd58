"""A tape of formulas, written out for other sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from memcalc.reading import Reading
from memcalc.symbols import is_symbol
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark, Repeat


def read_again(tape: Iterable[Event], reading: Reading) -> list[Event]:
    """The events of a tape whose sizes are formulas, for the sizes of a reading; what was one buffer is one again.

    >>> from memcalc.recording import Recording
    >>> recording = Recording()
    >>> rows = recording.input("rows", 2)
    >>> tape = [Alloc(Buffer("hidden", 8 * rows, "activation"))]
    >>> read_again(tape, recording.read({"rows": 5}))[0].buffer.requested
    40
    """
    return _Writer(reading).events(tape)


class _Writer:
    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.buffers: dict[int, Buffer] = {}

    def events(self, tape: Iterable[Event]) -> list[Event]:
        """Events in a row."""
        return [event if event.__class__ is Mark else self.event(event) for event in tape]

    def event(self, event: Any) -> Event:
        """A birth or a death, or a body repeated."""
        if event.__class__ is Repeat:
            return Repeat(self.number(event.times), tuple(self.events(event.body)))
        buffer = self.buffer(event.buffer)
        if buffer is event.buffer:
            return event  # type: ignore[no-any-return]
        return Alloc(buffer) if event.__class__ is Alloc else Free(buffer, event.below)

    def buffer(self, buffer: Buffer) -> Buffer:
        """The buffer with its numbers."""
        found = self.buffers.get(id(buffer))
        if found is None:
            size, shape = buffer.requested, buffer.shape
            found = buffer
            if is_symbol(size) or (shape is not None and any(map(is_symbol, shape))):
                shape = None if shape is None else tuple(map(self.number, shape))
                found = Buffer(
                    buffer.site, self.number(size), buffer.role, buffer.place, buffer.stream, buffer.module, buffer.operator,
                    buffer.dtype, shape,
                )  # fmt: skip
            self.buffers[id(buffer)] = found
        return found

    def number(self, number: Any) -> Any:
        """A number, or what a formula is."""
        return self.reading.value(number) if is_symbol(number) else number
