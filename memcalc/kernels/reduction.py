"""Reductions on CUDA: the staging buffer and semaphores of one that is split over thread blocks (native/cuda/Reduce.cuh).

A mean, sum or norm of a large tensor is worked out by many blocks, whose partial results and counters are memory for a moment.
All of it is pytorch 2.13 aten/src/ATen/native/cuda/Reduce.cuh:setReduceConfig unless a line says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from memcalc.arrays import Count, is_array, recording_of
from memcalc.records import dataclass

MULTIPROCESSORS: dict[str, int] = {
    "p100": 56,
    "v100": 80,
    "t4": 40,
    "a100": 108,
    "a40": 84,
    "a10": 72,
    "a6000": 84,
    "rtx-3090": 82,
    "l4": 58,
    "l40": 142,
    "rtx-4090": 128,
    "h100": 132,
    "h200": 132,
    "b200": 148,
    "rtx-5090": 170,
}
"""Streaming multiprocessors by the start of a device's name (NVIDIA's architecture white papers; SXM boards)."""
THREADS_PER_SM = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
"""``maxThreadsPerMultiProcessor`` where it is not 2048 (CUDA C programming guide, technical specifications)."""
MAX_THREADS = 512  # Reduce.cuh:mnt_wrapper::MAX_NUM_THREADS
WARP = 32
MIN_VALUES, MAX_VALUES = 16, 256  # Reduce.cuh:setReduceConfig, min_values_per_thread and max_values_per_thread
Dims = list[tuple[int, int]]


def multiprocessors_of(name: str) -> int:
    """Streaming multiprocessors of a device by its name in ``configs/devices``; 132 (an H100) where it is not known.

    >>> multiprocessors_of("a100-80gb"), multiprocessors_of("rtx-4090")
    (108, 128)
    """
    fits = [known for known in MULTIPROCESSORS if name.startswith(known)]
    return MULTIPROCESSORS[max(fits, key=len)] if fits else 132


@dataclass(frozen=True)
class Chip:
    """How many blocks a GPU runs at once; an H100's unless told."""

    multiprocessors: int = 132
    threads: int = 2048
    """Threads of one multiprocessor."""

    @classmethod
    def named(cls, name: str, capability: tuple[int, int]) -> Chip:
        """A device's.

        >>> Chip.named("a40-48gb", (8, 6)).threads
        1536
        """
        return cls(multiprocessors_of(name), THREADS_PER_SM.get(capability, 2048))


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


def staging(form: Layout, accumulator: int, chip: Chip, vec: int = 4) -> tuple[int, int]:
    """(bytes of partial results, of semaphores) of one reduction: nothing unless it is split over blocks.

    Args:
        form: the reduction.
        accumulator: bytes of a partial result.
        chip: the GPU.
        vec: elements a thread loads at once (vt0 and input_vec_size of the kernel).

    >>> staging(layout((2**20,), (1,), None), 4, Chip())
    (512, 4)
    """
    if not form.reduced or not form.outputs or not form.inputs:
        return 0, 0
    fastest = not form.kept or form.reduced[0][1] < form.kept[0][1]
    dim0, dim1 = (form.inputs, form.outputs) if fastest else (form.outputs, form.inputs)
    out_vec = 1
    if fastest and form.reduced[0][1] == 1 and dim0 >= 128 and len(form.reduced) == 1:
        dim0 //= vec
    elif not fastest and form.kept[0][1] == 1:
        out_vec = _output_vector(form)
        dim0 //= out_vec
    width, height = _block(dim0, dim1, MAX_THREADS // out_vec)
    step_in, step_out = (width, 1) if fastest else (1, width)
    if -(-form.inputs // step_in) < min(height * 16, MAX_VALUES):
        return 0, 0  # no split across warps, so none across blocks
    step_in *= height
    values = -(-form.inputs // step_in)
    grid = -(-(form.outputs // out_vec) // step_out)
    target = chip.multiprocessors * (chip.threads // (width * height))
    if values < MAX_VALUES or grid > target:
        return 0, 0
    blocks = max(min(-(-target // grid), -(-values // MIN_VALUES)), -(-values // MAX_VALUES))
    if blocks <= 1:
        return 0, 0
    # global_memory_size: element_size_bytes * num_outputs * ctas_per_output, times the block's width where x is not reduced
    return accumulator * form.outputs * blocks * (1 if fastest else width * out_vec), 4 * grid  # sizeof(int) * grid.x


def contiguous(shape: Sequence[Count], dims: Sequence[int] | None, accumulator: int, chip: Chip) -> tuple[Count, Count]:
    """The staging of reducing a contiguous tensor over ``dims`` (None: all); of arrays, element by element."""

    def one(*sizes: int) -> tuple[int, int]:
        strides = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
        return staging(layout([int(size) for size in sizes], strides, dims), accumulator, chip)

    recording = recording_of(*shape)
    if recording is not None:
        chosen = None if dims is None else tuple(dims)
        return cast(tuple[Count, Count], recording.atoms(2, _contiguous, chosen, accumulator, chip, *shape))
    if any(is_array(size) for size in shape):
        from memcalc.kernels.reductions import contiguous_arrays

        return contiguous_arrays(shape, dims, accumulator, chip)
    return one(*map(int, shape))


def _contiguous(dims: Sequence[int] | None, accumulator: int, chip: Chip, *shape: Count) -> tuple[Count, Count]:
    """:func:`contiguous`, the sizes last."""
    return contiguous(shape, dims, accumulator, chip)


def _block(dim0: int, dim1: int, most: int) -> tuple[int, int]:
    """set_block_dimension: width and height of a block."""
    low0, low1 = (1 << (d.bit_length() - 1) if 0 < d < most else (most if d else 1) for d in (dim0, dim1))
    width = min(low0, WARP)
    height = min(low1, most // width)
    return min(low0, most // height), height


def _output_vector(form: Layout) -> int:
    """get_output_vec_size: 4, 2 or 1 outputs a thread, by alignment."""
    others = [stride for _, stride in form.reduced] + [stride for _, stride in form.kept[1:]]
    size = 4
    for number in (form.kept[0][0], *others):
        while number % size:
            size //= 2
    return size
