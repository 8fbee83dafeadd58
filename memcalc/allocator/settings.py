"""The caching allocator's settings, from the syntax of PYTORCH_CUDA_ALLOC_CONF (also PYTORCH_ALLOC_CONF).

>>> parse_settings("max_split_size_mb:128,garbage_collection_threshold:0.8").max_split_size
134217728
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from memcalc.errors import InputError, NotModelledError
from memcalc.records import dataclass

if TYPE_CHECKING:
    from memcalc.job import Job

MIB = 2**20
BLOCK = 512  # pytorch c10/core/AllocatorConfig.h:kMinBlockSize
SMALL = MIB  # pytorch c10/core/AllocatorConfig.h:kSmallSize, the largest request of the small pool
SMALL_SEGMENT = 2 * MIB  # pytorch c10/core/AllocatorConfig.h:kSmallBuffer
LARGE_SEGMENT = 20 * MIB  # pytorch c10/core/AllocatorConfig.h:large_segment_size_ (kLargeBuffer before 2.10)
MIN_LARGE = 10 * MIB  # pytorch c10/core/AllocatorConfig.h:kMinLargeAlloc
ROUND_LARGE = 2 * MIB  # pytorch c10/core/AllocatorConfig.h:kRoundLarge
INTERVALS = 16  # pytorch c10/core/AllocatorConfig.cpp:kRoundUpPowerOfTwoIntervals, from 1 MiB to 64 GiB
UNLIMITED = 2**63
"""Stands for the largest size_t: no size reaches it."""

VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Where PyTorch looks, in this order (pytorch c10/cuda/CUDAAllocatorConfig.h:CUDAAllocatorConfig::instance)."""

WITHOUT_EFFECT = frozenset({
    "pinned_use_background_threads", "pinned_max_round_threshold_mb", "pinned_max_cached_size_mb",
    "pinned_use_cuda_host_register", "pinned_use_hip_host_register", "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb", "pinned_free_catch_all", "release_lock_on_cudamalloc", "release_lock_on_hipmalloc",
    "graph_capture_record_stream_reuse",
})  # fmt: skip
"""Known to PyTorch, and without effect on device bytes outside a graph capture: pinned host memory, locks."""


@dataclass(frozen=True, slots=True)
class AllocatorSettings:
    """What changes the allocator's behaviour. Sizes in bytes; the defaults are PyTorch's.

    Attributes:
        expandable_segments: whether segments grow in place.
        max_split_size: blocks of this size and more are never split.
        max_non_split_rounding_size: how much larger than such a request a block may be that still serves it.
        large_segment_size: segment for requests over 1 MiB and under 10 MiB.
        roundup_power2_divisions: divisions between powers of two, for sizes under 2 MiB, 4 MiB, … 32 GiB, and above; 0 is off.
        garbage_collection_threshold: share of the allowed memory from which unused blocks are given back; 0 is off. PyTorch
            heeds it only where ``per_process_memory_fraction`` is under 1.
        per_process_memory_fraction: share of the device this process may take.
        ignored: keys that were given and change no device byte.
    """

    expandable_segments: bool = False
    max_split_size: int = UNLIMITED
    max_non_split_rounding_size: int = LARGE_SEGMENT  # pytorch c10/core/AllocatorConfig.cpp:AcceleratorAllocatorConfig()
    large_segment_size: int = LARGE_SEGMENT
    roundup_power2_divisions: tuple[int, ...] = (0,) * INTERVALS
    garbage_collection_threshold: float = 0.0
    per_process_memory_fraction: float = 1.0
    ignored: tuple[str, ...] = field(default_factory=tuple)


def settings_from_environment(environment: Mapping[str, str]) -> AllocatorSettings:
    """The settings PyTorch would take from an environment.

    >>> settings_from_environment({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}).expandable_segments
    True
    """
    for variable in VARIABLES:
        if variable in environment:
            return parse_settings(environment[variable], variable)
    return AllocatorSettings()


def parse_settings(text: str, where: str = VARIABLES[0]) -> AllocatorSettings:
    """Settings from their text, ``key:value`` joined by commas, a value being a word or a list in brackets.

    Stricter than PyTorch, which passes over misplaced separators and, without a CUDA build, unknown keys.

    Raises:
        InputError: a key or value that PyTorch refuses, or that cannot be read.
        NotModelledError: a setting that changes the bytes in a way this model does not know.
    """
    given: dict[str, Any] = {}
    pairs = [_pair(item, where) for item in _items(text, where)]
    # the segment's size bounds two others, wherever it stands (pytorch c10/core/AllocatorConfig.cpp:parseArgs)
    segment = LARGE_SEGMENT
    for key, value in pairs:
        if key == "large_segment_size_mb":
            segment = _mebibytes(value, f"{where}.{key}", MIN_LARGE // MIB + 1)
            given |= {"large_segment_size": segment, "max_non_split_rounding_size": segment}
    ignored: list[str] = []
    for key, value in pairs:
        path = f"{where}.{key}"
        if key in WITHOUT_EFFECT:
            ignored.append(key)
        elif key in ("max_split_size_mb", "max_non_split_rounding_mb"):
            name = "max_split_size" if key == "max_split_size_mb" else "max_non_split_rounding_size"
            given[name] = _mebibytes(value, path, segment // MIB)
        elif key in _READERS:
            given[key] = _READERS[key](value, path)
        elif key != "large_segment_size_mb":
            _refuse(key, value, path, where)
    return AllocatorSettings(**given, ignored=tuple(ignored))


def asked_settings(job: Job) -> AllocatorSettings | None:
    """What a job says of the allocator; None where it says nothing.

    Raises:
        InputError: settings that PyTorch refuses, or of a job that asks for states alone, which are bounded by the defaults.
        NotModelledError: a setting that changes the bytes in a way this model does not know.
    """
    text = job.behaviour.allocator
    if text is None:
        return None
    settings = parse_settings(text, "behaviour.allocator")
    if job.scope == "states":
        raise InputError("behaviour.allocator", text, "is for a step that is played: states alone are bounded by the defaults",
                         "leave it out, or use scope step")  # fmt: skip
    return settings


def settings_text(settings: AllocatorSettings) -> str:
    """The text that gives these settings, empty for the defaults.

    >>> settings_text(parse_settings("expandable_segments:True,max_split_size_mb:64"))
    'expandable_segments:True,max_split_size_mb:64'
    """
    plain = AllocatorSettings()
    numbers = {
        "expandable_segments": settings.expandable_segments,
        "large_segment_size_mb": settings.large_segment_size // MIB,
        "max_split_size_mb": settings.max_split_size // MIB,
        "max_non_split_rounding_mb": settings.max_non_split_rounding_size // MIB,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "per_process_memory_fraction": settings.per_process_memory_fraction,
        "roundup_power2_divisions": f"[{','.join(f'{2**i}:{n}' for i, n in enumerate(settings.roundup_power2_divisions))}]",
    }
    fields = {key: key.replace("_mb", "").replace("rounding", "rounding_size") for key in numbers}
    changed = [key for key, name in fields.items() if getattr(settings, name) != getattr(plain, name)]
    return ",".join(f"{key}:{numbers[key]}" for key in changed)


def _items(text: str, where: str) -> list[str]:
    """``key:value`` texts; a comma inside brackets separates nothing."""
    plain = re.sub(r"\s", "", text)
    if plain.count("[") != plain.count("]"):
        raise InputError(where, text, "has a bracket without its partner", "write lists as [256:1,512:2]")
    return re.split(r",(?![^\[]*\])", plain) if plain else []


def _pair(item: str, where: str) -> tuple[str, str]:
    key, colon, value = item.partition(":")
    if not (key and colon and value):
        raise InputError(where, item, "is not key:value", "write it as max_split_size_mb:128,expandable_segments:True")
    return key, value


def _refuse(key: str, value: str, path: str, where: str) -> None:
    if key == "backend":
        if value == "native":
            return
        if value in ("cudaMallocAsync", "hipMallocAsync"):
            raise NotModelledError(path, value, "leaves caching to the driver, which is not modelled", "use backend:native")
        raise InputError(path, value, "is no backend", "use native")  # pytorch CUDAAllocatorConfig.cpp:parseAllocatorConfig
    if key == "throw_on_cudamalloc_oom":
        if value == "False":
            return
        raise NotModelledError(
            path, value, "fails requests before the cache is released, which is not modelled", "leave it out"
        )
    if key.startswith("expandable_segments_reserve"):
        raise NotModelledError(path, value, "is of a PyTorch later than 2.13 and not modelled", "leave it out")
    known = ("large_segment_size_mb", "max_split_size_mb", "max_non_split_rounding_mb", "backend", *_READERS, *WITHOUT_EFFECT)
    close = get_close_matches(key, known, 1)
    raise InputError(
        where, key, "is no setting of PyTorch's allocator", f"did you mean {close[0]}?" if close else "leave it out"
    )


def _whole(value: str, path: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 12:
        raise InputError(path, value, "is not a whole number", "give digits alone")
    return int(value)


def _mebibytes(value: str, path: str, least: int) -> int:
    """A number of MiB, in bytes (bounds: pytorch c10/core/AllocatorConfig.cpp:parseMaxSplitSize, parseLargeSegmentSize)."""
    number = _whole(value, path)
    if number < least:
        raise InputError(path, number, f"is under {least} MiB, the least PyTorch takes", f"give {least} or more")
    return min(number * MIB, UNLIMITED)


def _boolean(value: str, path: str) -> bool:
    if value not in ("True", "False"):
        raise InputError(path, value, "is neither True nor False", "write True or False")
    return value == "True"


def _fraction(value: str, path: str, ends: bool) -> float:
    try:
        number = float(value)
    except ValueError:
        raise InputError(path, value, "is not a number", "give a number from 0 to 1") from None
    if not (0.0 <= number <= 1.0 if ends else 0.0 < number < 1.0):
        raise InputError(path, value, "lies outside 0 to 1" if ends else "does not lie between 0 and 1", "give 0.8, say")
    return number


def _divisions(value: str, path: str) -> tuple[int, ...]:
    """One number for all sizes, or a list of MiB:divisions (pytorch AllocatorConfig.cpp:parseRoundUpPower2Divisions)."""
    if not value.startswith("["):
        return (_power_of_2(value, path, "divisions"),) * INTERVALS
    table = [0] * INTERVALS
    last, first = 0, True
    for entry in filter(None, value[1:-1].split(",")):
        boundary, colon, count = entry.partition(":")
        if not (value.endswith("]") and colon and count):
            raise InputError(path, value, "is not a list of MiB:divisions", "write it as [256:1,512:2,>:4]")
        divisions = 0 if count == "0" else _power_of_2(count, path, "divisions")
        if boundary == ">":
            table[last + 1 :] = [divisions] * (INTERVALS - last - 1)
            continue
        index = min(_power_of_2(boundary, path, "a boundary in MiB").bit_length() - 1, INTERVALS - 1)
        if first:  # the first entry holds for everything below it too
            table[:index] = [divisions] * index
            first = False
        table[index], last = divisions, index
    return tuple(table)


def _power_of_2(value: str, path: str, what: str) -> int:
    number = _whole(value, path)
    if number < 1 or number & (number - 1):
        raise InputError(path, number, f"is no power of two, as {what} must be", "use 1, 2, 4, 8, …")
    return number


_READERS: dict[str, Callable[[str, str], Any]] = {
    "expandable_segments": _boolean,
    "garbage_collection_threshold": lambda value, path: _fraction(value, path, ends=False),
    "per_process_memory_fraction": lambda value, path: _fraction(value, path, ends=True),
    "roundup_power2_divisions": _divisions,
}
