"""What fits: the largest micro-batch, or sequence, of a model on a device, for every way of training it that is asked about.

Each way is folded over arrays of sizes to find where it ends, and then estimated there as any job is, allocator and all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.api import estimate_read, model_of
from memcalc.errors import NO_VALUE, InputError, MemcalcError
from memcalc.families.base import load_family
from memcalc.footprint import Footprint
from memcalc.inference import trains
from memcalc.job import Job, read_job
from memcalc.models import Model
from memcalc.positions import check_positions, most_of
from memcalc.records import dataclass
from memcalc.verdict import capacity_of
from memcalc.ways import CHECKPOINTING, OPTIMIZERS, PRECISIONS, Grid, check_grid, forwards, grid_of, trained

__all__ = ["CHECKPOINTING", "OPTIMIZERS", "PRECISIONS", "Choice", "Grid", "fit", "grid_of", "with_size"]

SIZES = {"batch": "micro_batch_size", "sequence": "sequence_length", "context": "context_length"}
"""What is made as large as possible, and the job's key for it; a context is what a step of decoding finds in its cache."""
LONGEST = 2**24
"""No size beyond it is tried."""
FRAGMENTED = 24
"""How often a size is taken back because the allocator cannot play it in what is left."""
REFINED = 64
"""Sizes looked at together between two, of which the smaller fits."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way of training.

    Attributes:
        optimizer: its full name.
        precision: the scheme.
        checkpointing: ``none``, ``selective`` or ``full``.
        zero_stage: 0 to 3.
        largest: the largest size that fits; 0 where not even 1 does; None where it cannot be said.
        verdict: of the footprint there: ``fits``, ``tight``, ``does_not_fit`` or ``unknown``.
        at_one: the step's peak at a size of 1, in blocks of 512 B.
        footprint: at that size, or at 1 where that does not fit; None where it cannot be said.
        reason: why it cannot be said, or of the verdict.
        cache: of keys and values, where nothing trains; the optimizer and checkpointing are empty then.
        most: what the size may be whatever the memory, as a model has so many positions, or a cache so many places.
    """

    optimizer: str
    precision: str
    checkpointing: str
    zero_stage: int
    largest: int | None
    verdict: str
    at_one: int | None = None
    footprint: Footprint | None = None
    reason: str = ""
    cache: str = ""
    most: int | None = None

    @property
    def peak(self) -> int | None:
        """Bytes its step allocates at most; None where that is not known."""
        return None if self.footprint is None else self.footprint.peak.allocated

    @property
    def kept(self) -> int | None:
        """Bytes it keeps from step to step, which no batch makes smaller."""
        return None if self.footprint is None else self.footprint.states.rounded

    @property
    def each(self) -> int | None:
        """Bytes that one more of the size takes, from 1 to the largest; None where there is no more than one."""
        if not self.largest or self.largest < 2 or self.peak is None or self.at_one is None:
            return None
        return (self.peak - self.at_one) // (self.largest - 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "optimizer": self.optimizer, "precision": self.precision, "activation_checkpointing": self.checkpointing,
            "zero_stage": self.zero_stage, "cache": self.cache, "largest": self.largest, "most": self.most,
            "verdict": self.verdict, "reason": self.reason,
            "peak_at_one": self.at_one, "peak_allocated": self.peak, "bytes_each": self.each, "states_rounded": self.kept,
            "headroom": None if self.footprint is None or self.footprint.fits is None else self.footprint.fits.headroom,
        }  # fmt: skip


def fit(
    mapping: Mapping[str, Any], grid: Grid | None = None, *, largest: str = "batch", app_dir: str | None = None
) -> list[Choice]:
    """Every way of training of a grid, the one with the largest size first; among equals, the one that takes least.

    Args:
        mapping: a job with its hardware; what the grid says stands in place of its own optimizer, precision, checkpointing
            and ZeRO stage.
        grid: the ways; what it leaves open is the job's own, else four optimizers, three precisions, with checkpointing and
            without.
        largest: ``batch``, ``sequence`` or ``context``.
        app_dir: where ``py:`` modules are looked for.

    Raises:
        InputError: no hardware to fit, ways that the job's mode does not have, or a job that cannot be.
    """
    if largest not in SIZES:
        raise InputError("largest", largest, "is no size that can be sought", "use batch, sequence or context")
    job, ways = read_job(mapping), grid or Grid()
    _check_size(job, largest)
    if capacity_of(job) is None:
        raise InputError("hardware.gpu", NO_VALUE, "is missing", "name a device with --gpu, or bytes with --memory")
    check_grid(job, ways)
    model = model_of(job, app_dir=app_dir)
    _check_read(model, largest)
    check_positions(with_size(job, SIZES[largest], 1), model)
    jobs = trained(job, ways) if trains(job) else forwards(job, ways)
    errors: list[MemcalcError] = []
    found = [_choice(each, model, SIZES[largest], errors) for each in jobs]
    _raise_shared(errors, len(found))
    return sorted(found, key=_rank)


def _raise_shared(errors: Sequence[MemcalcError], ways: int) -> None:
    """An error that every way has is one of the job's.

    Raises:
        InputError: they have one.
    """
    if len({str(one) for one in errors}) == 1 and len(errors) == ways and isinstance(errors[0], InputError):
        raise errors[0]


def _rank(choice: Choice) -> tuple[int, int]:
    return (-1 if choice.largest is None else choice.largest) * -1, choice.kept or 0


def _check_size(job: Job, largest: str) -> None:
    """Refuse to seek a size that the job's mode does not have, or that the job gives itself.

    Raises:
        InputError: it does not, or does.
    """
    if largest == "context" and job.mode != "decode":
        raise InputError("largest", largest, f"is no size in mode {job.mode}", "set mode to decode, or seek batch or sequence")
    if largest == "sequence" and job.mode == "decode":
        raise InputError("largest", largest, "is no size in mode decode, which reads one token", "seek batch or context")
    section, key = _section(SIZES[largest]), SIZES[largest]
    given = getattr(getattr(job, section), key)
    if given is not None:
        other = "batch" if largest != "batch" else "context" if job.mode == "decode" else "sequence"
        rule = f"is given, and the largest {largest} is what is sought"
        raise InputError(f"{section}.{key}", given, rule, f"leave it out, or seek the largest {other}: --largest {other}")


def _check_read(model: Model, largest: str) -> None:
    """Refuse to seek the longest sequence of a model that reads none.

    Raises:
        InputError: it reads none.
    """
    if largest != "batch" and model.config is not None and "sequence_length" not in load_family(model.family).inputs:
        raise InputError("largest", largest, f"is no size of {model.family}, which reads no tokens", "seek the largest batch")


def _section(key: str) -> str:
    return "inference" if key == "context_length" else "training"


def with_size(job: Job, key: str, size: Any) -> Job:
    """The job with one of its sizes, or with an array of them."""
    section = _section(key)
    return job.model_copy(update={section: getattr(job, section).model_copy(update={key: size})})


def _choice(job: Job, model: Model, key: str, errors: list[MemcalcError]) -> Choice:
    """The way of a job; why it cannot be said, if it cannot, is added to ``errors``."""
    training = job.training
    names: tuple[str, str, str, int] = (
        training.optimizer, training.precision, training.activation_checkpointing, job.parallelism.zero_stage
    )  # fmt: skip
    cache = ""
    if not trains(job):
        names, cache = ("", training.precision, "", 0), "none" if job.mode == "evaluate" else job.inference.cache
    try:
        size, least, at_least = _largest(job, model, key)
        footprint, size = _played(job, model, key, size, least)
    except MemcalcError as error:
        errors.append(error)
        return Choice(*names, None, "unknown", reason=str(error), cache=cache)
    assert footprint.fits is not None
    told = footprint.job["training"]["optimizer"] or "", *names[1:]
    most = most_of(job, model, key)
    most = None if most is None else int(most)
    return Choice(*told, size, footprint.fits.verdict, at_least, footprint, footprint.fits.reason, cache, most)


def _largest(job: Job, model: Model, key: str) -> tuple[int, int, int]:
    """(the largest size whose folded peak is within the memory less what stands beside it, 0 for none; the smallest that can
    be; the peak at that).

    Raises:
        InputError: no size can be.
        NotModelledError: no size's step can be played.
    """
    limit, most = _limit(job, model.family), most_of(job, model, key)
    end = LONGEST if most is None else max(1, min(int(most), LONGEST))
    sizes = [2**power for power in range(end.bit_length())]
    sizes += [] if sizes[-1] == end else [end]
    found = _peaks(job, model, key, sizes)
    first = next((place for place, peak in enumerate(found) if not isinstance(peak, MemcalcError)), None)
    if first is None:
        assert isinstance(found[0], MemcalcError)
        raise found[0]
    least, at_least = sizes[first], found[first]
    assert isinstance(at_least, int)
    beyond = next((place for place in range(first, len(found)) if not _within(found[place], limit)), len(found))
    if beyond in (first, len(found)):
        return (0 if beyond == first else sizes[-1]), least, at_least
    low, high = sizes[beyond - 1], sizes[beyond]
    while high - low > 1:
        step = max(1, (high - low) // REFINED)
        tried = list(range(low, high, step))
        peaks = _peaks(job, model, key, tried)
        fitting = [size for size, peak in zip(tried, peaks, strict=True) if _within(peak, limit)]
        low, high = max(fitting), min([size for size in tried if size > max(fitting)], default=high)
    return low, least, at_least


def _within(peak: int | MemcalcError, limit: int) -> bool:
    return isinstance(peak, int) and peak <= limit


def _peaks(job: Job, model: Model, key: str, sizes: Sequence[int]) -> list[int | MemcalcError]:
    """The folded peak of each size, or why it cannot be: what is refused of some sizes is asked of each half by itself."""
    from memcalc.engines.analytic.many import peaks

    try:
        return [int(peak) for peak in peaks(job, model, key, sizes)]
    except MemcalcError as error:
        if len(sizes) == 1:
            return [error]
    half = len(sizes) // 2
    return _peaks(job, model, key, sizes[:half]) + _peaks(job, model, key, sizes[half:])


def _limit(job: Job, family: str) -> int:
    """Bytes that a prediction may come to: the memory less its headroom and the most that stands beside it, over the bound."""
    from memcalc.behaving import behaviour_of
    from memcalc.bounds import interval
    from memcalc.device_total import device_total

    capacity = capacity_of(job)
    assert capacity is not None
    total = device_total({"behaviour": behaviour_of(job).told(), "parallelism": job.parallelism.model_dump()}, 0)
    beside = total.low if total.high is None else total.high
    left = int(capacity[2] * (1 - job.hardware.headroom)) - beside
    bound = interval("analytic", family)
    return left if bound is None else int(left / bound.high)


def _played(job: Job, model: Model, key: str, size: int, least: int) -> tuple[Footprint, int]:
    """The estimate of the largest size that the allocator can play, no more than one whose fold is within the memory.

    It may need more than the fold says: a size is taken back until it can, and what lies between is halved.
    """
    footprint, beyond = _estimated(job, model, key, max(size, least)), size
    for _ in range(FRAGMENTED):
        if not size or _settled(footprint):
            break
        beyond = size
        size -= max(1, size // 32)
        size = size if size >= least else 0
        footprint = _estimated(job, model, key, max(size, least))
    while size and beyond - size > 1 and _settled(footprint):
        between = (size + beyond) // 2
        tried = _estimated(job, model, key, between)
        if _settled(tried):
            footprint, size = tried, between
        else:
            beyond = between
    return footprint, size


def _settled(footprint: Footprint) -> bool:
    return footprint.fits is None or footprint.fits.verdict in ("fits", "unknown")


def _estimated(job: Job, model: Model, key: str, size: int) -> Footprint:
    return estimate_read(with_size(job, key, size), model)
