"""A flat run of tensors cut into equal partitions: which tensors each partition touches, whole."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count

if TYPE_CHECKING:
    import numpy as np


def touched(sizes: Sequence[int], partition: int, ranks: int) -> list[tuple[int, int, int]]:
    """(elements of the tensors touched, first rank, how many such ranks), the most first.

    A tensor that a cut goes through is touched, whole, on both sides.

    >>> touched([6, 6, 2], 7, 2)
    [(12, 0, 1), (8, 1, 1)]
    """
    sizes = [size for size in sizes if size]
    ends = list(accumulate(sizes))
    begins = [0, *ends[:-1]]
    before = [0, *ends]
    alike: dict[int, tuple[int, int]] = {}
    for rank in range(ranks):
        start = rank * partition
        first, last = bisect_right(ends, start), bisect_left(begins, start + partition)
        total = before[last] - before[first] if last > first else 0
        index, times = alike.get(total, (rank, 0))
        alike[total] = (index, times + 1)
    return sorted(((total, index, times) for total, (index, times) in alike.items()), reverse=True)


def most_touched(sizes: Sequence[int], partition: np.ndarray[Any, Any]) -> Count:
    """The most any partition touches, for each of an array of partitions' sizes.

    A partition in which no tensor begins lies inside one, and touches no more than the partition where that one begins; so
    only those where some tensor begins are looked at.
    """
    numpy = sys.modules["numpy"]
    kept = numpy.array([size for size in sizes if size], dtype=numpy.int64)
    ends = numpy.cumsum(kept)
    begins = ends - kept
    before = numpy.concatenate([[0], ends])

    def most(length: int) -> int:
        starts = begins // length * length
        last, first = numpy.searchsorted(begins, starts + length), numpy.searchsorted(ends, starts, "right")
        return int((before[last] - before[first]).max())

    lengths, which = numpy.unique(partition.astype(numpy.int64), return_inverse=True)
    answers = numpy.array([most(int(length)) for length in lengths], dtype=partition.dtype)
    result: Count = answers[which].reshape(partition.shape)
    return result
