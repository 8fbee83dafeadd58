"""Arithmetic that reads the same for one job and for a hundred thousand: int in, int out; int64 array in, array out.

A formula (``memcalc.symbols``) counts as an array: it, too, stands for many jobs.

Families, layers, optimizers and sharding use these instead of ``if`` on a number, so that a sweep is the same code as a
single estimate. numpy is never imported here: whoever holds an array has imported it already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    import numpy as np

    Count: TypeAlias = int | np.ndarray[Any, Any]
    Condition: TypeAlias = bool | np.ndarray[Any, Any]
else:
    Count = Condition = Any

BLOCK = 512
"""The CUDA caching allocator's granule in bytes (pytorch c10/core/AllocatorConfig.h:19, kMinBlockSize)."""


class SplitError(Exception):
    """A decision that differs from job to job, of jobs evaluated together: ``condition`` tells them apart."""

    def __init__(self, condition: Any) -> None:
        super().__init__("jobs of different structure")
        self.condition = condition


def _numpy() -> Any:
    return sys.modules["numpy"]


def recording_of(*values: Any) -> Any:
    """The recording that any of these is a formula of (``memcalc.symbols``); None for numbers and arrays."""
    return next((value.recording for value in values if hasattr(value, "recording")), None)


def _over(*values: Any) -> Any:
    """What holds numbers of this kind: a recording that makes formulas of them, or numpy."""
    return recording_of(*values) or _numpy()


def is_array(value: object) -> bool:
    """Whether ``value`` holds many jobs at once."""
    return hasattr(value, "dtype")


def where(condition: Condition, yes: Count, no: Count) -> Count:
    """``yes`` where the condition holds, ``no`` elsewhere.

    >>> where(3 > 2, 10, 20)
    10
    """
    if condition is True or condition is False or not is_array(condition):  # one job's is nearly always one of the two
        return yes if condition else no
    return cast(Count, _over(condition).where(condition, yes, no))


def maximum(first: Count, second: Count) -> Count:
    """The larger of two, element by element."""
    if (first.__class__ is int and second.__class__ is int) or not (is_array(first) or is_array(second)):
        return first if first >= second else second
    return cast(Count, _over(first, second).maximum(first, second))


def minimum(first: Count, second: Count) -> Count:
    """The smaller of two, element by element."""
    if (first.__class__ is int and second.__class__ is int) or not (is_array(first) or is_array(second)):
        return first if first <= second else second
    return cast(Count, _over(first, second).minimum(first, second))


def ceil_div(amount: Count, by: Count) -> Count:
    """Division rounded up.

    >>> ceil_div(7, 2), ceil_div(8, 2), ceil_div(0, 2)
    (4, 4, 0)
    """
    return -(-amount // by)


def round_up(amount: Count, multiple: Count) -> Count:
    """The next multiple at or above ``amount``.

    >>> round_up(513, 512), round_up(512, 512), round_up(0, 512)
    (1024, 512, 0)
    """
    return -(-amount // multiple) * multiple


def rounded(requested: Count) -> Count:
    """Bytes of one buffer after the allocator's 512 B rounding; an empty tensor takes no block.

    >>> rounded(1), rounded(512), rounded(0)
    (512, 512, 0)
    """
    return -(-requested // BLOCK) * BLOCK


def truncate(amount: Any) -> Count:
    """A product with a fraction cut to a whole number toward zero, as ``int`` does, element by element.

    >>> truncate(80 * 0.4), truncate(7 * 0.25)
    (32, 1)
    """
    return cast(Count, amount.astype("int64")) if is_array(amount) else int(amount)


def as_int(amount: Count) -> int:
    """One job's number as a plain int."""
    return int(amount)


def both(first: Condition, second: Condition) -> Condition:
    """Logical and, for bools and arrays alike."""
    return first & second


def not_(condition: Condition) -> Condition:
    """Logical not, for bools and arrays alike."""
    return ~condition if not isinstance(condition, bool) else not condition


def product(factors: Iterable[Count]) -> Count:
    """The product; 1 for none, which is a scalar tensor's element count."""
    total: Count = 1
    for factor in factors:
        total = total * factor
    return total


def moved_up(sizes: Iterable[Count]) -> list[Count]:
    """Sizes without their zeros, in order; of many jobs, as long a list as the longest needs, zeros at the end of others'.

    >>> moved_up([0, 3, 0, 5])
    [3, 5]
    """
    listed = list(sizes)
    if not any(is_array(size) for size in listed):
        return [size for size in listed if size]
    numpy = _numpy()
    table = numpy.stack(numpy.broadcast_arrays(*listed))
    there = table != 0
    place = numpy.cumsum(there, axis=0) - 1
    moved = numpy.zeros((int(there.sum(axis=0).max()), *table.shape[1:]), dtype=table.dtype)
    at = numpy.nonzero(there)
    moved[(place[at], *at[1:])] = table[at]
    return list(moved)


def as_count(condition: Condition) -> Count:
    """1 where the condition holds, 0 elsewhere: how many there are of something that may be absent."""
    return where(condition, 1, 0)
