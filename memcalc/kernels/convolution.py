"""What cuDNN's convolutions hold for a moment, and the layouts they run in."""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.arrays import Count

ITEM = 4
"""Bytes of an element where products are summed."""


def workspace(operands: Iterable[tuple[Count, int]]) -> Count:
    """CuDNN's workspace: what it needs to hold every operand once more in the layout of its tensor-core kernels.

    pytorch ATen/native/cudnn/Conv_v8.cpp:run_single_conv takes the first plan of the heuristic that runs; its workspace is
    known to cuDNN alone. Kernels on channels-last tensors need little or none; on planar half tensors each operand is
    transposed; a gradient of the weight may be split over thread blocks and summed in FP32. A bound.

    Args:
        operands: (elements, bytes of one) of each that is held once more.

    >>> workspace([(100, 2), (10, 8)])
    480
    """
    total: Count = 0
    for elements, item in operands:
        total = total + elements * max(ITEM, item)
    return total


def extent(size: Count, kernel: Count, stride: Count, padding: Count, dilation: Count = 1) -> Count:
    """Positions that a window takes along one dimension (pytorch ATen/native/ConvUtils.h:conv_output_size).

    >>> extent(224, 7, 2, 3), extent(3000, 3, 2, 1)
    (112, 1500)
    """
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
