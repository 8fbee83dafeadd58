"""The timeline: live bytes by role at every instant, the phases, the peak, and the buffers that make up any instant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from memcalc.arrays import rounded
from memcalc.errors import NO_VALUE, InputError
from memcalc.records import dataclass
from memcalc.tape.events import ROLES, Buffer, Event, Phase, Role
from memcalc.timeline.lives import Ints, Lives, Stay, read
from memcalc.units import checked_bytes

Measure = Literal["requested", "rounded"]
STEADY = 2
"""The first iteration that is like all later ones: optimizer states are born in iteration 1."""
STACK: tuple[Role, ...] = (
    "parameter", "parameter_copy", "master_parameter", "buffer", "optimizer_state", "gradient", "cache", "input", "activation",
    "temporary", "communication", "workspace", "context",
)  # fmt: skip
"""Roles from the bottom of a stacked picture up: what stays longest lies lowest."""
assert set(STACK) == set(ROLES)


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant: its index, the phase and iteration it falls in, and the bytes live then."""

    instant: int
    bytes: int
    phase: Phase
    iteration: int


@dataclass(frozen=True, slots=True)
class Life:
    """One buffer's life; ``bytes`` in the timeline's measure, ``dies`` None where the tape ends before it does."""

    index: int
    buffer: Buffer
    bytes: int
    born: Moment
    dies: Moment | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """A tape, instant by instant, on the device. Make one with :meth:`of`.

    Attributes:
        measure: whether sizes are as requested or rounded to the allocator's blocks.
        lives: the buffers, and the order of births and deaths.
        sizes: bytes of each buffer, int64; 0 for one that is not on the device.
        roles: the roles that take any bytes, from the bottom of the stack up.
        live: int64 ``[roles, instants]``: live bytes by role.
        total: int64 ``[instants]``: their sum.
        allocated: what the allocator counts at each instant, where it was replayed.
        reserved: what it holds from the driver, where it was replayed.
        window: the instants ``(start, stop)`` the peak is looked for in.
        peak: the highest instant of ``total`` in the window, the first of equals.
    """

    measure: Measure
    lives: Lives
    sizes: Ints
    roles: tuple[Role, ...]
    live: Ints
    total: Ints
    allocated: Ints | None
    reserved: Ints | None
    window: tuple[int, int]
    peak: Moment

    @classmethod
    def of(
        cls,
        tape: Iterable[Event],
        *,
        measure: Measure = "rounded",
        allocated: Sequence[int] | Any | None = None,
        reserved: Sequence[int] | Any | None = None,
        iteration: int | None = None,
    ) -> Timeline:
        """The timeline of a tape.

        Args:
            tape: events in order; a buffer is known by identity.
            measure: ``rounded`` (each buffer up to 512 B) or ``requested``.
            allocated: bytes the allocator counts after each allocation or free of the tape, if it was replayed; or after each
                event, marks too.
            reserved: bytes it then holds from the driver.
            iteration: where to look for the peak: one iteration, or the steady ones (2 and later, all where there is none).

        Raises:
            InputError: an empty tape, a free of what is not alive, an iteration that is not there, a series of another
                length, or bytes of 2**63 and more.

        >>> from memcalc.tape.events import Alloc, Buffer, Free, Mark
        >>> weight, saved = Buffer("weight", 1000, "parameter"), Buffer("saved", 300, "activation")
        >>> timeline = Timeline.of([Alloc(weight), Mark("forward"), Alloc(saved), Free(saved)])
        >>> timeline.peak.instant, timeline.peak.bytes, timeline.peak.phase, timeline.by_role(1)
        (1, 1536, 'forward', {'parameter': 1024, 'activation': 512})
        """
        lives = read(tape)
        sizes = _sizes(lives.buffers, measure)
        roles, live = _live(lives, sizes)
        total = np.asarray(live.sum(axis=0), dtype=np.int64)
        window = _window(lives.stays, iteration)
        at = window[0] + int(total[slice(*window)].argmax())
        stay = _stay(lives.stays, at)
        return cls(
            measure=measure,
            lives=lives,
            sizes=sizes,
            roles=roles,
            live=live,
            total=total,
            allocated=_series("allocated", allocated, lives),
            reserved=_series("reserved", reserved, lives),
            window=window,
            peak=Moment(at, int(total[at]), stay.phase, stay.iteration),
        )

    def __len__(self) -> int:
        """How many instants there are."""
        return len(self.total)

    def moment(self, instant: int) -> Moment:
        """The instant with its phase, iteration and live bytes."""
        stay = _stay(self.lives.stays, instant)
        return Moment(int(instant), int(self.total[instant]), stay.phase, stay.iteration)

    def by_role(self, instant: int) -> dict[Role, int]:
        """Live bytes of each role at an instant, which sum to its total."""
        return {role: int(self.live[at, instant]) for at, role in enumerate(self.roles)}

    def alive(self, instant: int) -> list[int]:
        """The buffers alive on the device at an instant, as indices into ``lives``: the largest first, then the oldest."""
        born, dies = self.lives.born, self.lives.dies
        there = np.flatnonzero((born <= instant) & (dies > instant) & (self.sizes > 0))
        return [int(index) for index in there[np.argsort(-self.sizes[there], kind="stable")]]

    def life(self, index: int) -> Life:
        """One buffer's life."""
        born, dies = int(self.lives.born[index]), int(self.lives.dies[index])
        end = None if dies == len(self) else self.moment(dies)
        return Life(index, self.lives.buffers[index], int(self.sizes[index]), self.moment(born), end)

    def largest(self, most: int, instant: int | None = None) -> list[Life]:
        """The ``most`` largest buffers alive at an instant, the peak by default."""
        return [self.life(index) for index in self.alive(self.peak.instant if instant is None else instant)[:most]]

    def top(self, stay: Stay) -> Moment:
        """A phase's highest instant."""
        return self.moment(stay.start + int(self.total[stay.start : stay.stop].argmax()))

    def highest(self, series: Ints | None) -> Moment | None:
        """The highest instant of ``allocated`` or ``reserved`` in the window; None where it was not replayed."""
        if series is None:
            return None
        at = self.window[0] + int(series[slice(*self.window)].argmax())
        stay = _stay(self.lives.stays, at)
        return Moment(at, int(series[at]), stay.phase, stay.iteration)


def _sizes(buffers: list[Buffer], measure: Measure) -> Ints:
    of = rounded if measure == "rounded" else int
    asked = [of(one.requested) if one.place == "device" else 0 for one in buffers]
    checked_bytes(sum(asked), "timeline")  # type: ignore[arg-type]
    return np.array(asked, dtype=np.int64)


def _live(lives: Lives, sizes: Ints) -> tuple[tuple[Role, ...], Ints]:
    """Running sums of births less deaths, role by role."""
    number = {role: at for at, role in enumerate(STACK)}
    kinds = np.array([number[one.role] for one in lives.buffers], dtype=np.int64)
    who = np.abs(lives.events) - 1
    change = np.sign(lives.events) * sizes[who]
    kind = kinds[who]
    there = [at for at in range(len(STACK)) if (sizes[kinds == at] > 0).any()]
    live = np.stack([np.where(kind == at, change, 0).cumsum() for at in there]) if there else np.zeros((0, len(who)), np.int64)
    return tuple(STACK[at] for at in there), live


def _window(stays: tuple[Stay, ...], iteration: int | None) -> tuple[int, int]:
    steady = [one for one in stays if (one.iteration >= STEADY if iteration is None else one.iteration == iteration)]
    if not steady and iteration is not None:
        known = ", ".join(str(number) for number in sorted({one.iteration for one in stays}))
        raise InputError("timeline.iteration", iteration, "is not on the tape", f"it has {known}")
    held = steady or list(stays)
    return held[0].start, held[-1].stop


def _stay(stays: tuple[Stay, ...], instant: int) -> Stay:
    """The stretch an instant falls in, by bisection: there may be as many as gradient accumulation makes."""
    low, high = 0, len(stays)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if stays[middle].start <= instant else (low, middle)
    return stays[low]


def _series(name: str, given: Sequence[int] | Any | None, lives: Lives) -> Ints | None:
    if given is None:
        return None
    series, instants = np.asarray(given, dtype=np.int64), len(lives.events)
    if series.shape == (lives.leaves,):
        return series[lives.places]
    if series.shape != (instants,):
        rule = f"has the shape {list(series.shape)}, and the tape has {instants} allocations and frees"
        raise InputError(f"timeline.{name}", NO_VALUE, rule, "give one number for each of them")
    return series
