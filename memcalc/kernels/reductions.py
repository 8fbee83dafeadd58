"""Reductions of many jobs at once: :func:`memcalc.kernels.reduction.staging` over arrays of sizes, with the same numbers.

What a reduction's layout looks like depends only on which dimensions are 1, because a contiguous tensor's neighbours of one
side always merge. So jobs are parted by that, and each part is worked out in arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from memcalc.arrays import Count, is_array
from memcalc.kernels.reduction import MAX_THREADS, MAX_VALUES, MIN_VALUES, WARP, Chip

Array = np.ndarray[Any, Any]
VEC = 4
"""Elements a thread loads at once, as ``staging`` has them."""
KEPT_ANSWERS = 8
_FLOOR = np.array([1, *(1 << (number.bit_length() - 1) for number in range(1, MAX_THREADS + 1))], dtype=np.int64)
"""The largest power of two that a number up to MAX_THREADS holds; 1 for 0."""
_known: dict[Any, tuple[Any, tuple[Array, Array]]] = {}


def contiguous_arrays(shape: Sequence[Count], dims: Sequence[int] | None, accumulator: int, chip: Chip) -> tuple[Array, Array]:
    """(bytes of partial results, of semaphores) of reducing contiguous tensors over ``dims`` (None or empty: all).

    A step reduces the same shapes again and again: the last few answers are kept, by the arrays' identity.
    """
    chosen = tuple(sorted({d % len(shape) for d in dims})) if dims else tuple(range(len(shape)))
    key = (
        tuple(id(size) if is_array(size) else -int(size) for size in shape), chosen, accumulator,
        chip.multiprocessors, chip.threads,
    )  # fmt: skip
    found = _known.pop(key, None)
    if found is None:
        found = tuple(shape), _worked_out(shape, chosen, accumulator, chip)
        while len(_known) >= KEPT_ANSWERS:
            del _known[next(iter(_known))]
    _known[key] = found  # the shape is held with it, so that no other array can take its identity
    return found[1]


def _worked_out(shape: Sequence[Count], chosen: Sequence[int], accumulator: int, chip: Chip) -> tuple[Array, Array]:
    form = np.broadcast_shapes(*(size.shape for size in shape if is_array(size)))  # type: ignore[union-attr]
    flat: list[Any] = [np.broadcast_to(size, form).reshape(-1) if is_array(size) else int(size) for size in shape]
    jobs = prod(form)
    partial, semaphores = (np.zeros(jobs, dtype=np.int64) for _ in range(2))
    pattern = np.zeros(jobs, dtype=np.int64)
    for place, size in enumerate(flat):
        pattern += np.asarray(size != 1).astype(np.int64) << place
    for which in np.flatnonzero(np.bincount(pattern, minlength=1)).tolist():
        there = pattern == which
        whole = bool(there.all())
        sides: tuple[list[list[Any]], list[list[Any]]] = ([], [])
        fastest, last = True, -1
        stride: Any = 1
        for place in reversed([place for place in range(len(flat)) if which >> place & 1]):
            size, side = flat[place], 0 if place in chosen else 1
            if not whole and is_array(size):
                size = size[there]
            if last < 0:
                fastest = side == 0
            if last == side:
                sides[side][-1][0] = sides[side][-1][0] * size
            else:
                sides[side].append([size, stride])
            stride, last = stride * size, side
        if sides[0]:
            told = _staged(sides[0], sides[1], fastest, accumulator, chip)
            partial[there], semaphores[there] = told
    return partial.reshape(form), semaphores.reshape(form)


def _staged(reduced: Any, kept: Any, fastest: bool, accumulator: int, chip: Chip) -> tuple[Array, Array]:
    """``staging`` of layouts that are alike; ``fastest`` is whether the innermost dimension is reduced."""
    inputs: Any = 1
    outputs: Any = 1
    for size, _ in reduced:
        inputs = inputs * size
    for size, _ in kept:
        outputs = outputs * size
    empty = (inputs == 0) | (outputs == 0)
    dim0, dim1 = (inputs, outputs) if fastest else (outputs, inputs)
    out_vec: Any = 1
    if not fastest:
        out_vec = _output_vector([kept[0][0], *(stride for _, stride in (*reduced, *kept[1:]))])
        dim0 = dim0 // out_vec
    elif len(reduced) == 1:
        dim0 = np.where(dim0 >= 128, dim0 // VEC, dim0)
    width, height = _block(dim0, dim1, MAX_THREADS // out_vec)
    step_in, step_out = (width, 1) if fastest else (1, width)
    alone = -(-inputs // step_in) < np.minimum(height * 16, MAX_VALUES)
    step_in = step_in * height
    values = -(-inputs // step_in)
    grid = np.maximum(-(-(outputs // out_vec) // step_out), 1)
    target = chip.multiprocessors * (chip.threads // (width * height))
    blocks = np.maximum(np.minimum(-(-target // grid), -(-values // MIN_VALUES)), -(-values // MAX_VALUES))
    some = ~(empty | alone | (values < MAX_VALUES) | (grid > target) | (blocks <= 1))
    partial = accumulator * outputs * blocks * (1 if fastest else width * out_vec)
    return np.where(some, partial, 0), np.where(some, 4 * grid, 0)


def _block(dim0: Any, dim1: Any, most: Any) -> tuple[Any, Any]:
    low0, low1 = (_FLOOR[np.minimum(dim, most)] for dim in (dim0, dim1))
    width = np.minimum(low0, WARP)
    height = np.minimum(low1, most // width)
    return np.minimum(low0, most // height), height


def _output_vector(numbers: Sequence[Any]) -> Any:
    fours: Any = True
    twos: Any = True
    for number in numbers:
        fours, twos = fours & (number % 4 == 0), twos & (number % 2 == 0)
    return np.where(fours, 4, np.where(twos, 2, 1))
