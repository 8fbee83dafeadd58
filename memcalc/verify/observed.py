"""A figure someone else measured, held against the bounds that can be stated today. Only what is certain is judged."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

from memcalc.errors import EXIT_NO, EXIT_UNJUDGED, EXIT_YES, InputError, either
from memcalc.footprint import Footprint
from memcalc.records import dataclass
from memcalc.units import format_gib, parse_bytes
from memcalc.verify.tolerance import Tolerance

METRICS = {
    "allocated": "torch.cuda.max_memory_allocated",
    "reserved": "torch.cuda.max_memory_reserved",
    "nvidia-smi": "what nvidia-smi shows for the process: reserved, the CUDA context and libraries",
}
"""What a figure may be of; each is at least as large as the one before it."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A figure, and half a unit of its last digit: the most by which it may have been rounded."""

    nbytes: int
    slack: int
    metric: str


@dataclass(frozen=True, slots=True)
class ObservedVerdict:
    """The figure beside the bounds.

    Attributes:
        observed: the figure.
        low: bytes the step takes at least.
        high: bytes it takes at most; None where the peak of the whole step is not modelled.
        outcome: ``passed``, ``failed`` or ``unjudged``.
        reason: why, in one line.
        footprint: what is predicted.
    """

    observed: Observed
    low: int
    high: int | None
    outcome: Literal["passed", "failed", "unjudged"]
    reason: str
    footprint: Footprint

    @property
    def exit_code(self) -> int:
        """0 within the bounds, 1 beyond them, 2 where they cannot tell."""
        return {"passed": EXIT_YES, "failed": EXIT_NO, "unjudged": EXIT_UNJUDGED}[self.outcome]


def parse_observed(text: str, metric: str) -> Observed:
    """The figure, read with as much precision as it was written with.

    Raises:
        InputError: no size, or no metric of that name.

    >>> parse_observed("1.5KiB", "allocated")
    Observed(nbytes=1536, slack=52, metric='allocated')
    """
    if metric not in METRICS:
        raise InputError("--metric", metric, "is not a metric memcalc knows", f"use {either(list(METRICS))}")
    number = re.match(r"\s*[0-9_,]*(?:\.([0-9]+))?", text)
    unit = text[number.end() :].strip() if number else ""
    try:
        nbytes = parse_bytes(text, "--observed")
    except InputError as error:
        # 71.3GiB is no whole number of bytes, and is a figure all the same
        if "whole number" not in error.rule or number is None:
            raise
        nbytes = round(Decimal(number.group().replace(",", "").replace("_", "")) * parse_bytes(f"1{unit}", "--observed"))
    digits = len(number.group(1) or "") if number else 0
    slack = 0 if not unit else -(-parse_bytes(f"1{unit}", "--observed") // (2 * 10**digits))
    return Observed(nbytes, slack if slack > 1 else 0, metric)


def judge_observed(observed: Observed, footprint: Footprint, tolerance: Tolerance) -> ObservedVerdict:
    """Held against the range of what is allocated: below it is a contradiction for any metric, above it for that one alone."""
    states, high = footprint.states.rounded, footprint.peak.high
    low = states if footprint.peak.low is None else footprint.peak.low
    margin = observed.slack + max(tolerance.nbytes, int(tolerance.share * observed.nbytes))
    seen = f"{format_gib(observed.nbytes)} were observed"

    def verdict(outcome: Literal["passed", "failed", "unjudged"], reason: str) -> ObservedVerdict:
        return ObservedVerdict(observed, low, high, outcome, f"{seen}{reason}", footprint)

    if observed.nbytes + margin < min(states, low):
        return verdict(
            "failed", f", and the states alone are predicted to take {format_gib(states)}; one of the two is of another run"
        )
    if observed.nbytes + margin < low:
        return verdict("failed", f", and the step is predicted to allocate at least {format_gib(low)}")
    if high is None:
        what = (
            "activations and workspaces" if observed.metric == "allocated" else "activations, workspaces, reserve and context"
        )
        over = format_gib(max(observed.nbytes - low, 0))
        return verdict(
            "unjudged", f"; the states take at least {format_gib(low)} of them, and {over} are {what}, not modelled yet"
        )
    if observed.nbytes - margin <= high:
        return verdict("passed", f", between {format_gib(low)} and {format_gib(high)}")
    above = f", and the step is predicted to allocate at most {format_gib(high)}"
    if observed.metric == "allocated":
        return verdict("failed", above)
    return verdict("unjudged", f"{above}{_beyond(observed.metric, footprint)}; how far that may be off has not been recorded")


def _beyond(metric: str, footprint: Footprint) -> str:
    """What is predicted beyond what is allocated."""
    peak = footprint.peak
    if metric == "reserved" and peak.reserved is not None:
        return f" and to reserve {format_gib(peak.reserved)}"
    if metric == "nvidia-smi" and peak.device_low is not None:
        end = "more" if peak.device_high is None else format_gib(peak.device_high)
        return f" and to take {format_gib(peak.device_low)} to {end} of the device"
    return ""
