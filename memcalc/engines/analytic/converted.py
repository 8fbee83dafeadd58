"""What a machine has played, in the events that every reader of a tape takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memcalc.arrays import Count, product
from memcalc.play.stretch import Told
from memcalc.play.values import Life
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark, Phase, Repeat, frees


class Converter:
    """Lives to buffers, marks to marks, stretches to repetitions."""

    def __init__(self) -> None:
        self.buffers: dict[Life, Buffer] = {}
        self.times: dict[Life, Count] = {}
        """How many of a life stand behind it, of those born in a stretch."""
        self.within: dict[Life, tuple[Count, ...]] = {}
        """How often each of the stretches is repeated that it is born in, from the outermost to the innermost."""
        self.born: dict[Life, int] = {}
        self.left: set[Life] = set()
        self.workspaces: dict[Life, Buffer] = {}
        self.same: dict[Life, Life] = {}
        self.freed: set[Life] = set()
        """What some turn of a stretch lets go of."""
        self.handed: set[Life] = set()
        """What each turn gives to the next, which lets go of it: one is left in the end, not one of every turn."""
        self.place = 0
        self.phase: Phase = "init"
        self.phases: dict[int, Phase] = {}

    def look(self, tape: Sequence[Any]) -> None:
        """Where each life begins and ends, and how many stand behind it."""
        self._scan(tape, ())
        self.handed = {later for first, later in self.same.items() if first in self.freed}

    def _scan(self, tape: Sequence[Any], within: tuple[Count, ...]) -> None:
        for kind, life in tape:
            if life is None and isinstance(kind, str):
                if kind == "loss":  # a part of forward, as far as what outlives it goes
                    continue
                self.place += 1
                self.phases[self.place] = kind  # type: ignore[assignment]
            elif isinstance(kind, Told):
                continue
            elif life is None:
                self.same |= dict(kind.carried)
                self._scan(kind.body, (*within, kind.times))
            elif kind > 0:
                self.born[life] = self.place
                if within:
                    self.within[life], self.times[life] = within, product(within)
            else:
                if self.born.get(life) != self.place:
                    self.left.add(life)
                if within:
                    self.freed.add(life)

    def events(self, tape: Sequence[Any], depth: int = 0, *, first: bool = False) -> Iterable[Event]:
        """The events of a tape, or of the body of a stretch; ``first`` are those of the first iteration."""
        late = self._late(tape) if depth else ()
        for kind, life in tape:
            if life is None and isinstance(kind, str):
                yield Mark(kind)  # type: ignore[arg-type]
            elif isinstance(kind, Told):
                if first or not kind.first:
                    yield from kind.events
            elif life is None:
                yield Repeat(kind.times, tuple(self.events(kind.body, depth + 1, first=first)))
            elif kind > 0:
                buffer = self.buffer(life)
                if buffer.role == "workspace":
                    self.workspaces[life] = buffer
                else:
                    yield Alloc(buffer)
            else:
                buffer = self.buffer(life)
                turns = () if life in self.handed else self.within.get(life, ())[depth:]
                if turns:
                    yield frees(buffer, product(turns))  # one was left by every turn
                else:
                    yield Free(buffer, 1) if life in late else Free(buffer)

    def _late(self, tape: Sequence[Any]) -> set[Life]:
        """What a turn was given and lets go of after it has made what it gives: not the youngest of the two then."""
        made: set[Life] = set()
        late: set[Life] = set()
        for kind, life in tape:
            if life is None:
                continue
            if kind > 0:
                made.add(life)
            elif life in self.same and self.same[life] in made:
                late.add(life)
        return late

    def buffer(self, life: Life) -> Buffer:
        """The buffer of a life: what a stretch is given and what it gives are one."""
        life = self.same.get(life, life)
        found = self.buffers.get(life)
        if found is None:
            site = life.name or " in ".join(part for part in (life.operator, life.module) if part)
            found = Buffer(
                site, life.size, self._role(life), stream=life.stream, module=life.module, operator=life.operator,  # type: ignore[arg-type]
                dtype=life.dtype, shape=life.shape,  # type: ignore[arg-type]
            )  # fmt: skip
            self.buffers[life] = found
        return found

    def _role(self, life: Life) -> str:
        if life.role is not None:
            return life.role
        forward = self.phases.get(self.born.get(life, 0)) == "forward"
        return "activation" if forward and life in self.left else "temporary"
