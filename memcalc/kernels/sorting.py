"""What cub's sorts hold for a moment."""

from __future__ import annotations

from memcalc.arrays import Count

HISTOGRAMS = 2**20
"""256 counters a digit and portion, under 1 MiB for fewer than 2**28 elements (cub dispatch_radix_sort.cuh)."""


def radix_sort(elements: Count, key: int, value: int) -> Count:
    """Bytes of a radix sort's temporary storage, a bound: a second copy of keys and values, and histograms.

    cub/device/dispatch/dispatch_radix_sort.cuh: InvokeOnesweep keeps alternate buffers where input may not be overwritten.

    >>> radix_sort(80, 8, 8)
    1049856
    """
    return elements * (key + value) + HISTOGRAMS
