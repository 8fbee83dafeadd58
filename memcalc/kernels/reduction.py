"""How a reduction is split over thread blocks, and what that takes (pytorch aten/src/ATen/native/cuda/Reduce.cuh)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memcalc.arrays import Count, ceil_div, maximum, minimum, where
from memcalc.kernels.behaviour import Behaviour

MAX_THREADS = 512  # Reduce.cuh:mnt_wrapper::MAX_NUM_THREADS
WARP = 32
MIN_VALUES, MAX_VALUES = 16, 256  # Reduce.cuh:setReduceConfig, min_values_per_thread and max_values_per_thread
THREADS_PER_SM = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
"""``maxThreadsPerMultiProcessor`` where it is not 2048 (CUDA C programming guide, technical specifications)."""
Dims = list[tuple[int, int]]


@dataclass(frozen=True)
class Layout:
    """A reduction as TensorIterator sees it: (size, stride in elements), fastest first, neighbours merged where they can be."""

    reduced: Dims
    kept: Dims

    @property
    def outputs(self) -> int:
        """Elements of the result."""
        return math.prod(size for size, _ in self.kept)

    @property
    def inputs(self) -> int:
        """Elements that go into each."""
        return math.prod(size for size, _ in self.reduced)


def layout(shape: Sequence[int], strides: Sequence[int], dims: Sequence[int] | None) -> Layout:
    """The reduction of ``dims`` (None or empty: all).

    >>> layout((4, 8, 16), (128, 16, 1), [0, 1])
    Layout(reduced=[(32, 16)], kept=[(16, 1)])
    """
    chosen = {d % len(shape) for d in dims} if dims else set(range(len(shape)))
    sides: tuple[Dims, Dims] = ([], [])
    for place in sorted(range(len(shape)), key=lambda d: strides[d]):
        if shape[place] != 1:
            side = sides[0 if place in chosen else 1]
            if side and side[-1][0] * side[-1][1] == strides[place]:  # TensorIterator.cpp:coalesce_dimensions
                side[-1] = (side[-1][0] * shape[place], side[-1][1])
            else:
                side.append((shape[place], strides[place]))
    return Layout(*sides)


def global_reduce(form: Layout, accumulator: int, behaviour: Behaviour, vec: int = 4) -> tuple[int, int]:
    """(bytes of partial results, bytes of semaphores): 0 unless it is split over blocks (setReduceConfig, global_memory_size).

    Args:
        form: the reduction.
        accumulator: bytes of a partial result.
        behaviour: the number of multiprocessors and the compute capability.
        vec: elements a thread loads at once (vt0 and input_vec_size of the kernel).
    """
    if not form.reduced or not form.outputs or not form.inputs:
        return 0, 0
    fastest = not form.kept or form.reduced[0][1] < form.kept[0][1]
    dim0, out_vec = form.inputs if fastest else form.outputs, 1
    if fastest and form.reduced[0][1] == 1 and dim0 >= 128 and len(form.reduced) == 1:
        dim0 //= vec
    elif not fastest and form.kept[0][1] == 1:
        out_vec = _output_vector(form)
        dim0 //= out_vec
    return _split(form.inputs, form.outputs, dim0, out_vec, accumulator, behaviour, fastest=fastest)  # type: ignore[return-value]


def over_rows(rows: Count, columns: Count, accumulator: int, behaviour: Behaviour) -> tuple[Count, Count]:
    """The same of a contiguous ``(rows, columns)`` summed over its rows, for one reduction or for many at once.

    >>> over_rows(1028, 344, 4, Behaviour()) == global_reduce(layout((1028, 344), (344, 1), [0]), 4, Behaviour())
    True
    """
    out_vec = where(columns % 4 == 0, 4, where(columns % 2 == 0, 2, 1))
    there = (rows > 1) & (columns > 1)
    sizes = _split(rows, columns, columns // out_vec, out_vec, accumulator, behaviour, fastest=False)
    alone = over_columns(1, rows, accumulator, behaviour)  # one column is one row
    return tuple(where(there, size, where(rows > 1, one, 0)) for size, one in zip(sizes, alone, strict=True))  # type: ignore[return-value]


def over_columns(rows: Count, columns: Count, accumulator: int, behaviour: Behaviour) -> tuple[Count, Count]:
    """The same summed over its columns; one row of them all is a sum over everything.

    >>> over_columns(1, 65536, 4, Behaviour()) == global_reduce(layout((65536,), (1,), None), 4, Behaviour())
    True
    """
    dim0 = where(columns >= 128, columns // 4, columns)
    sizes = _split(columns, rows, dim0, 1, accumulator, behaviour, fastest=True)
    return tuple(where(columns > 1, size, 0) for size in sizes)  # type: ignore[return-value]


def _split(
    inputs: Count, outputs: Count, dim0: Count, out_vec: Count, accumulator: int, behaviour: Behaviour, *, fastest: bool
) -> tuple[Count, Count]:
    """Partial results and semaphores of a reduction whose threads lie along ``dim0``, or nothing (setReduceConfig)."""
    width, height = _block(dim0, outputs if fastest else inputs, MAX_THREADS // out_vec)
    step_in, step_out = (width, 1) if fastest else (1, width)
    warps = ceil_div(inputs, step_in) >= minimum(height * 16, MAX_VALUES)  # split across warps, else not across blocks either
    values = ceil_div(inputs, step_in * height)
    grid = ceil_div(outputs // out_vec, step_out)
    target = behaviour.multiprocessors * (THREADS_PER_SM.get(behaviour.capability, 2048) // (width * height))
    wanted = minimum(ceil_div(target, maximum(grid, 1)), ceil_div(values, MIN_VALUES))
    blocks = maximum(wanted, ceil_div(values, MAX_VALUES))
    split = warps & (values >= MAX_VALUES) & (grid <= target) & (blocks > 1)
    # global_memory_size: element_size_bytes * num_outputs * ctas_per_output, times the block's width where x is not reduced
    size = accumulator * outputs * blocks * (1 if fastest else width * out_vec)
    return where(split, size, 0), where(split, 4 * grid, 0)  # semaphore_size: sizeof(int) * grid.x


def _block(dim0: Count, dim1: Count, most: Count) -> tuple[Count, Count]:
    """set_block_dimension: width and height of a block."""
    low0, low1 = _power_below(dim0, most), _power_below(dim1, most)
    width = minimum(low0, WARP)
    height = minimum(low1, most // width)
    return minimum(low0, most // height), height


def _power_below(size: Count, most: Count) -> Count:
    """The largest power of two that is neither above ``size`` nor above ``most``, itself one (last_pow2)."""
    power: Count = 1
    for exponent in range(1, 10):
        power = where(size >= 1 << exponent, 1 << exponent, power)
    return minimum(power, most)


def _output_vector(form: Layout) -> int:
    """get_output_vec_size: 4, 2 or 1 outputs a thread, by alignment."""
    others = [stride for _, stride in form.reduced] + [stride for _, stride in form.kept[1:]]
    size = 4
    for number in (form.kept[0][0], *others):
        while number % size:
            size //= 2
    return size
