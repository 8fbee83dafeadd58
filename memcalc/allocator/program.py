"""A tape as the bare loops take it: which buffer is born or dies, by number, and what each of them needs.

What happens when does not depend on sizes, so that of a tape of formulas it is written down once, for all jobs that are read
from it. A body that is repeated stays one turn and a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index as as_int
from typing import Any, TypeAlias

from memcalc.errors import InputError
from memcalc.records import dataclass
from memcalc.tape.events import PHASES, Alloc, Event, Mark, Phase, Repeat
from memcalc.tape.unroll import unroll

Place: TypeAlias = tuple[int, Phase]
"""(iteration, phase)."""
Op: TypeAlias = tuple[int, int]
"""(number of a buffer, -1 for a birth or how many younger ones stay at a death)."""
BIRTH = -1
SHORT = 256
"""Events of a repeated body that are written out rather than repeated: a turn of its own takes longer than some more events."""


class NotPlainError(Exception):
    """A tape that the bare loops do not play."""


@dataclass(slots=True)
class Turn:
    """Events in a row, some times over.

    Attributes:
        ops: the events.
        times: how often: a number, or a formula.
        settles: whether each time gives back all that it took, so that it leaves memory as it found it.
    """

    ops: list[Op]
    times: Any
    settles: bool


@dataclass(slots=True)
class Program:
    """A tape, its buffers by number.

    Attributes:
        phases: the turns of each phase, in order; a phase met again is another one.
        sizes: what is needed, no size twice: numbers, or formulas.
        needs: of each buffer, which of the sizes.
        compiled: the same as arrays, once somebody has made them.
    """

    phases: list[tuple[Place, list[Turn]]]
    sizes: list[Any]
    needs: list[int]
    compiled: Any = None

    def turns(self) -> list[Turn]:
        """Of all phases."""
        return [turn for _, turns in self.phases for turn in turns]


class Numbered:
    """A tape for one job: what the bare loops play, and its events for whoever asks.

    Args:
        program: what happens.
        value: what a size or a number of turns is.
        events: the events; not asked for before somebody wants them.

    Raises:
        NotPlainError: a size or a number of turns below zero, or one that stands for many jobs.
    """

    def __init__(self, program: Program, value: Callable[[Any], Any], events: Callable[[], Sequence[Event]]) -> None:
        self.program, self.events = program, events
        self.sizes = [_whole(value(size)) for size in program.sizes]
        self.times = [_whole(value(turn.times)) for turn in program.turns()]

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events())

    def needs(self) -> list[int]:
        """What each buffer needs."""
        return [self.sizes[which] for which in self.program.needs]

    @classmethod
    def of(cls, tape: Iterable[Event]) -> Numbered:
        """A tape of one job.

        Raises:
            NotPlainError: the bare loops do not play it.
        """
        if isinstance(tape, cls):
            return tape
        events = tape if isinstance(tape, list) else list(tape)
        return cls(program_of(events), _itself, lambda: events)


def program_of(tape: Sequence[Event]) -> Program:
    """What happens on a tape, whatever its sizes.

    Raises:
        NotPlainError: the bare loops do not play it.
    """
    return _Writer().program(tape)


class _Writer:
    def __init__(self) -> None:
        self.buffers: dict[int, int] = {}
        self.sizes: dict[Any, int] = {}
        self.written = Program([], [], [])
        self.ops: list[Op] = []
        self.turns: list[Turn] = []

    def program(self, tape: Sequence[Event]) -> Program:
        """Phase by phase."""
        first = next((event for event in tape if event.__class__ is Mark), None)
        place: Place = (2 if first is None else first.iteration, PHASES[0])
        for number, event in enumerate(tape):
            kind = event.__class__
            if kind is Mark:
                if number:
                    self.phase(place)
                place = event.iteration, event.phase  # type: ignore[union-attr]
            elif kind is Repeat:
                self.repeated(event)  # type: ignore[arg-type]
            else:
                self.leaf(event, self.ops)
        self.phase(place)
        return self.written

    def phase(self, place: Place) -> None:
        """A phase ends."""
        self.turn()
        self.written.phases.append((place, self.turns))
        self.turns = []

    def turn(self) -> None:
        """What was written so far is played before what follows."""
        if self.ops:
            self.turns.append(Turn(self.ops, 1, False))
            self.ops = []

    def repeated(self, event: Repeat) -> None:
        """A body so many times over."""
        ops: list[Op] = []
        try:
            for one in unroll(event.body):
                if one.__class__ is Mark:
                    raise NotPlainError
                self.leaf(one, ops)
        except InputError as error:  # a number of turns within, which the full replay refuses in its own words
            raise NotPlainError from error
        times: Any = event.times
        settles = len(ops) > 1 and _gives_all_back(ops)
        if times.__class__ is int and times >= 0 and (times == 1 or (times * len(ops) <= SHORT and not settles)):
            self.ops += ops * times
        elif ops:
            self.turn()
            self.turns.append(Turn(ops, times, settles))
        elif getattr(times, "ndim", 0) or (times.__class__ is int and times < 0):
            raise NotPlainError

    def leaf(self, event: Any, ops: list[Op]) -> None:
        """A birth or a death; what takes no memory of the device's is left out."""
        buffer = event.buffer
        if buffer.place != "device":
            return
        if buffer.stream:
            raise NotPlainError
        number = self.buffers.get(id(buffer))
        if number is None:
            number = self.buffers[id(buffer)] = len(self.written.needs)
            size = buffer.requested
            # equal formulas are one object (memcalc.recording), and are no keys: to compare them asks a question
            key = size if size.__class__ is int else id(size)
            which = self.sizes.get((size.__class__, key))
            if which is None:
                which = self.sizes[size.__class__, key] = len(self.written.sizes)
                self.written.sizes.append(size)
            self.written.needs.append(which)
        ops.append((number, BIRTH if event.__class__ is Alloc else event.below))


def _gives_all_back(ops: Sequence[Op]) -> bool:
    """Whether a body lets go of whatever it makes, the youngest of equals first, and of nothing else."""
    live: dict[int, int] = {}
    for buffer, below in ops:
        held = live.get(buffer, 0) + (1 if below == BIRTH else -1)
        if held < 0 or below > 0:
            return False
        live[buffer] = held
    return not any(live.values())


def _whole(number: Any) -> int:
    """A number of bytes or of turns.

    Raises:
        NotPlainError: it is below zero, or stands for many jobs.
    """
    if number.__class__ is not int:
        if getattr(number, "ndim", 0):
            raise NotPlainError
        number = as_int(number)
    if number < 0:
        raise NotPlainError
    return number  # type: ignore[no-any-return]


def _itself(number: Any) -> Any:
    return number
