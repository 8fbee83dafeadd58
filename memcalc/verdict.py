"""Whether a footprint fits its hardware. What is certain is said; what is not is ``tight`` or ``unknown``, never ``fits``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from memcalc.footprint import Fits, Footprint
from memcalc.job import Job
from memcalc.records import replace
from memcalc.units import format_gib

if TYPE_CHECKING:
    from memcalc.allocator.settings import AllocatorSettings
    from memcalc.tape.events import Event


def judged(
    footprint: Footprint, job: Job, tape: Iterable[Event] | None = None, settings: AllocatorSettings | None = None
) -> Footprint:
    """The footprint with its verdict, where the job names a device or a memory size.

    Args:
        footprint: the figures; those of a whole step went through :func:`memcalc.bounds.bounded`.
        job: what was asked.
        tape: the step's own, where there is one: without it no step is said to fit.
        settings: the allocator's, its defaults where left out.
    """
    capacity = capacity_of(job)
    if capacity is None:
        return footprint
    name, total, usable = capacity
    limit = int(usable * (1 - job.hardware.headroom))
    if job.scope == "step" and footprint.peak.allocated is not None:
        verdict, reason, most = judge_step(footprint, limit, tape, settings)
        return replace(footprint, fits=Fits(name, total, usable, verdict, limit - most, reason))
    low = footprint.states.rounded if job.scope == "states" else footprint.peak.low or 0
    high = footprint.states.bound if job.scope == "states" else footprint.peak.high
    verdict, reason = judge(low, high, limit, job.scope)
    return replace(footprint, fits=Fits(name, total, usable, verdict, limit - (low if high is None else high), reason))


def judge(low: int, high: int | None, limit: int, scope: str) -> tuple[str, str]:
    """(verdict, why) for bytes known to lie between ``low`` and ``high``; None for no upper bound.

    >>> [judge(low, high, 12, "step")[0] for low, high in ((10, 12), (10, 13), (13, 14), (10, None))]
    ['fits', 'tight', 'does_not_fit', 'unknown']
    """
    what = "the states" if scope == "states" else "the states alone" if high is None else "the step"
    if low > limit:
        return (
            "does_not_fit",
            f"{what} take at least {format_gib(low)}, {format_gib(low - limit)} more than {format_gib(limit)}",
        )
    if high is None:
        return "unknown", f"{what} take {format_gib(low)} of {format_gib(limit)}; the rest of the step is not modelled yet"
    if high > limit:
        return "tight", f"{what} take between {format_gib(low)} and {format_gib(high)} of {format_gib(limit)}"
    return "fits", f"{what} take at most {format_gib(high)} of {format_gib(limit)}"


def judge_step(
    footprint: Footprint, limit: int, tape: Iterable[Event] | None, settings: AllocatorSettings | None
) -> tuple[str, str, int]:
    """(verdict, why, bytes at most) of a whole step beside its context.

    It does not fit where the least that it allocates and the least context exceed the memory. It fits where the step can be
    played within what the largest context leaves, less the factor by which predictions were too low: whatever the allocator
    reserves beyond its need it gives back when memory runs short, so that what it would like to reserve decides nothing.
    """
    peak = footprint.peak
    assert peak.allocated is not None
    least = (peak.low or 0) + sum(line.low for line in footprint.outside)
    parts = [line.high for line in footprint.outside]
    beside = None if None in parts or not parts else sum(part or 0 for part in parts)
    if least > limit:
        why = f"the step and its context take at least {format_gib(least)}, {format_gib(least - limit)} more than"
        return "does_not_fit", f"{why} {format_gib(limit)}", least
    took = f"the step allocates {format_gib(peak.allocated)} of {format_gib(limit)}"
    if peak.high is None:
        return "unknown", f"{took}; how far that may be off is not known: no such run was recorded", least
    if beside is None:
        return "unknown", f"{took}; what the context and libraries take beside it has no known end here", least
    most = peak.high + beside
    if tape is None:
        return "unknown", f"{took}; whether what the allocator reserves fits too was not played", most
    from memcalc.bounds import lives_in

    words = f"allocates at most {format_gib(peak.high)}, its context and libraries at most {format_gib(beside)}"
    if most <= limit and lives_in(tape, (limit - beside) * peak.allocated // peak.high, settings):
        return "fits", f"the step {words}, and it can be played within {format_gib(limit)}", most
    if most <= limit:
        return "tight", f"the step {words} of {format_gib(limit)}; fragmentation may cost more than is left", most
    both = f"between {format_gib(least)} and {format_gib(most)} of {format_gib(limit)}"
    return "tight", f"the step and its context take {both}", most


def capacity_of(job: Job) -> tuple[str | None, int, int] | None:
    """(device, total bytes, usable bytes) of the job's hardware; None where it names none."""
    hardware = job.hardware
    if hardware.gpu is None:
        return None if hardware.memory is None else (None, hardware.memory, hardware.memory)
    from memcalc.devices import load_device

    device = load_device(hardware.gpu, "hardware.gpu")
    usable = device.usable_bytes if device.usable_bytes is not None else device.total_bytes
    return device.name, device.total_bytes, usable if hardware.memory is None else hardware.memory
