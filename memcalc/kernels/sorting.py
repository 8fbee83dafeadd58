"""Sorting, scanning and counting on CUDA: the temporary storage of cub and of the kernels around it."""

from __future__ import annotations

from memcalc.arrays import Count, ceil_div

SMALL_SORT = 4096
"""Elements up to which a row is sorted in place on the results (pytorch native/cuda/Sort.cpp:should_use_small_sort)."""
RANGE = 16
"""Bytes for a minimum and a maximum, which ``histc`` holds beside its counts (native/cuda/SummaryOps.cu)."""
CUB_HISTOGRAMS = 2**20
"""Under 1 MiB for fewer than 2**28 elements (cub/device/dispatch/dispatch_radix_sort.cuh: InvokeOnesweep)."""


def cub_sort(elements: Count, key: int, value: int) -> Count:
    """The cub radix sort's temporary storage: a second copy of keys and values, and histograms.

    cub/device/dispatch/dispatch_radix_sort.cuh: InvokeOnesweep keeps alternate buffers where input may not be overwritten; the
    histograms are 256 counters a digit and portion.

    >>> cub_sort(512, 8, 8)
    1056768
    """
    return elements * (key + value) + CUB_HISTOGRAMS


def cub_scan(elements: Count, item: int) -> Count:
    """The cub scan's or reduction's temporary storage: one descriptor a tile of at least 128 threads (dispatch_scan.cuh).

    >>> cub_scan(4, 8)
    1552
    """
    return (ceil_div(elements, 128) + 32) * 2 * item + 1024
