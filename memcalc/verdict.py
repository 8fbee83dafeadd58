"""Whether a footprint fits its hardware. What is certain is said; what is not is ``tight`` or ``unknown``, never ``fits``."""

from __future__ import annotations

from dataclasses import replace

from memcalc.footprint import Fits, Footprint
from memcalc.job import Job
from memcalc.units import format_gib


def judged(footprint: Footprint, job: Job) -> Footprint:
    """The footprint with its verdict, where the job names a device or a memory size."""
    capacity = capacity_of(job)
    if capacity is None:
        return footprint
    name, total, usable = capacity
    limit = int(usable * (1 - job.hardware.headroom))
    low = footprint.states.rounded if job.scope == "states" else footprint.peak.low or 0
    high = footprint.states.bound if job.scope == "states" else footprint.peak.high
    verdict, reason = judge(low, high, limit, job.scope)
    if footprint.engine == "trace" and verdict == "unknown":
        took = footprint.peak.allocated or low
        reason = (
            f"the traced step takes {format_gib(took)} of {format_gib(limit)}, and the CUDA context comes on top; "
            "how far a trace can be off is not known before it is held against recorded runs"
        )
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


def capacity_of(job: Job) -> tuple[str | None, int, int] | None:
    """(device, total bytes, usable bytes) of the job's hardware; None where it names none."""
    hardware = job.hardware
    if hardware.gpu is None:
        return None if hardware.memory is None else (None, hardware.memory, hardware.memory)
    from memcalc.devices import load_device

    device = load_device(hardware.gpu, "hardware.gpu")
    usable = device.usable_bytes if device.usable_bytes is not None else device.total_bytes
    return device.name, device.total_bytes, usable if hardware.memory is None else hardware.memory
