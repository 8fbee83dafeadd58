"""Sums and means, and the bringing of a gradient to the shape of what it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memcalc.kernels.reduction import contiguous
from memcalc.play.graph import Gradients, Node
from memcalc.play.pointwise import _is_one
from memcalc.play.values import Shape, Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def sum_to(machine: Machine, value: Value, shape: Shape) -> Value:
    """A gradient summed over what was stretched (pytorch ATen/ExpandUtils.h:sum_to)."""
    have = value.shape
    if have is shape:
        return value
    extra = len(have) - len(shape)
    stretched = any(_is_one(due) and not machine.same(given, 1) for given, due in zip(have[extra:], shape, strict=True))
    if not extra and not stretched:
        return value
    out = machine.new((*(1,) * extra, *shape), value.dtype, "sum.dim_IntList")
    split(machine, value, [d for d in range(len(have)) if d < extra or _is_one(shape[d - extra])])
    return Value(out.storage, shape, value.dtype, view=extra > 0)


def split(machine: Machine, value: Value, dims: Sequence[int]) -> None:
    """What a reduction over these dimensions takes for a moment where it is split over thread blocks (Reduce.cuh)."""
    item = max(value.itemsize, 4) if "float" in value.dtype else 8
    chip = machine.policy.behaviour.chip
    order = value.order or range(len(value.shape))
    # as densely as the dimensions can lie in that order; the reduction of a permuted tensor is that of its memory
    shape, where = [value.shape[d] for d in order], {d: place for place, d in enumerate(order)}
    partial, semaphores = contiguous(shape, sorted(where[d] for d in dims), item, chip)
    machine.scratches([("partial results", partial), ("semaphores", semaphores)])


def mean_last(machine: Machine, value: Value) -> Value:
    """The mean over the last dimension, which is kept."""
    out = machine.new((*value.shape[:-1], 1), value.dtype, "mean.dim")
    split(machine, value, [len(value.shape) - 1])
    return machine.record(out, (value,), (), _mean_backward, value.shape)


def _mean_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.new(node.meta, grad.dtype, "div.Scalar"),)


def mean_over(machine: Machine, value: Value, dims: tuple[int, ...], *, keep: bool = False) -> Value:
    """The mean over some dimensions."""
    shape = tuple(1 if i in dims else s for i, s in enumerate(value.shape) if keep or i not in dims)
    out = machine.new(shape, value.dtype, "mean.dim")
    return machine.record(out, (value,), (), _mean_backward, value.shape)


def mean_all(machine: Machine, value: Value) -> Value:
    """The mean over everything."""
    out = machine.new((), value.dtype, "mean")
    split(machine, value, range(len(value.shape)))
    return machine.record(out, (value,), (), _mean_backward, value.shape)


def sum_last(machine: Machine, value: Value, *, keep: bool = False, dtype: str | None = None) -> Value:
    """The sum over the last dimension; in FP32 under autocast."""
    return sum_over(machine, value, (len(value.shape) - 1,), keep=keep, dtype=dtype)


def sum_over(machine: Machine, value: Value, dims: tuple[int, ...], *, keep: bool = False, dtype: str | None = None) -> Value:
    """The sum over some dimensions; in FP32 under autocast (AT_FORALL_FP32_SET_OPT_DTYPE)."""
    if dtype is None:
        dtype = "float32" if machine.autocast is not None and "float" in value.dtype else value.dtype
    shape = tuple(1 if i in dims else s for i, s in enumerate(value.shape) if keep or i not in dims)
    out = machine.new(shape, dtype, "sum.dim_IntList")
    split(machine, value, dims)
    return machine.record(out, (value,), (), _sum_backward, value.shape)


def _sum_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (Value(grad.storage, node.meta, grad.dtype, view=True, gaps=tuple(range(len(node.meta)))),)


def sum_all(machine: Machine, value: Value) -> Value:
    """The sum over everything."""
    dtype = "float32" if machine.autocast is not None and "float" in value.dtype else value.dtype
    out = machine.new((), dtype, "sum")
    split(machine, value, range(len(value.shape)))
    return machine.record(out, (value,), (), _sum_backward, value.shape)
