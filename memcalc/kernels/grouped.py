"""Grouped matrix multiplication on CUDA, on which mixtures of experts run: rows of results, and what the kernel holds."""

from __future__ import annotations

from memcalc.arrays import Count, round_up
from memcalc.kernels.behaviour import Behaviour

ALIGNMENT = 16
"""Bytes a row of the result is padded to (pytorch GroupedMMUtils.h:create_grouped_gemm_output_tensor)."""


def padded_row(width: Count, itemsize: int) -> Count:
    """Elements from one row of the result to the next.

    >>> padded_row(172, 2), padded_row(176, 2)
    (176, 176)
    """
    return round_up(width, ALIGNMENT // itemsize)


def grouped_scratch(groups: Count, behaviour: Behaviour) -> list[tuple[str, Count]]:
    """Pointers, strides and problem sizes a group, and CUTLASS's workspace; elsewhere a loop of products that holds nothing.

    source: pytorch native/cuda/GroupMM.cu:bf16bf16_grouped_gemm_impl_sm90_sm100
    """
    if behaviour.major not in (9, 10):
        return []
    return [("problem descriptions", groups * 256), ("cutlass workspace", 2**16 + groups * 1024)]
