"""Convolutions as cuDNN runs them: planar unless an operand lies channels last.

source: pytorch ATen/native/Convolution.cpp:_convolution, convolution_backward; native/cudnn/ConvShared.h:
cudnn_conv_suggest_memory_format
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.kernels.convolution import extent, workspace
from memcalc.kernels.reduction import contiguous
from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Order, Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

LAST: Order = (0, 2, 3, 1)
"""The order in memory of an image whose channels are innermost."""


def is_last(value: Value) -> bool:
    """Whether a value lies channels last."""
    return value.order == LAST and not value.gaps


def convolution(
    machine: Machine,
    value: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[Count],
    padding: Sequence[Count],
    dilation: Count = 1,
) -> Value:
    """``(rows, channels, *extents)`` under ``(out, in / groups, *kernel)``; in autocast's dtype."""
    if machine.autocast is not None:  # arguments of one call, evaluated from the last to the first
        bias = None if bias is None else machine.low(bias)
        weight = machine.low(weight)
        value = machine.low(value)
    sizes = zip(value.shape[2:], weight.shape[2:], stride, padding, strict=True)
    shape = (value.shape[0], weight.shape[0], *(extent(*each, dilation) for each in sizes))
    last = is_last(value) or is_last(weight)
    machine.foresee(value, weight)
    out = machine.kept(shape, value.dtype, "convolution")
    out.order = LAST if last else None
    held = _copies(machine, (("input", value), ("weight", weight)), last=last)
    parts = (weight,) if last else (value, weight, out)
    held.append(("cuDNN workspace", workspace((part.numel, part.itemsize) for part in parts)))
    if not machine.found():
        machine.scratches(held)
    return machine.record(out, (value, weight, bias), (value, weight), _convolution_backward)


def _copies(machine: Machine, named: Sequence[tuple[str, Value]], *, last: bool) -> list[tuple[str, Count]]:
    """Operands that lie otherwise than the kernel reads them."""
    found: list[tuple[str, Count]] = []
    for name, value in named:
        if not lies(machine, value, last=last):
            found.append((f"{name} in the kernel's layout", value.nbytes))
    return found


def lies(machine: Machine, value: Value, *, last: bool) -> bool:
    """Whether a value lies channels last, or planar; extents of 1 lie anywhere."""
    if value.gaps:
        return False
    dims = len(value.shape)
    wanted = LAST if last and dims == 4 else tuple(range(dims))
    have = value.order or tuple(range(dims))
    if have == wanted:
        return True
    single = {d for d in range(dims) if machine.same(value.shape[d], 1)}
    return [d for d in have if d not in single] == [d for d in wanted if d not in single]


def _convolution_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    value, weight = saved
    last = is_last(value) or is_last(weight)
    order = LAST if last else None
    operator = "convolution_backward"
    of_value = machine.new(value.shape, grad.dtype, operator, order) if node.needs(0) else None
    of_weight = machine.new(weight.shape, grad.dtype, operator, order) if node.needs(1) else None
    of_bias = machine.new((weight.shape[0],), grad.dtype, operator) if node.needs(2) else None
    held = _copies(machine, (("grad_output", grad), ("input", value), ("weight", weight)), last=last)
    parts = (weight,) if last else (grad, value, weight)
    held.append(("cuDNN workspace", workspace((part.numel, part.itemsize) for part in parts)))
    if of_bias is not None:
        held += _summed(machine, grad)
    machine.scratches(held)
    return of_value, of_weight, of_bias


def _summed(machine: Machine, grad: Value) -> list[tuple[str, Count]]:
    """What the sum of a gradient to its channels takes where it is split over thread blocks."""
    order = tuple(grad.order or range(len(grad.shape)))
    dims = [place for place, dim in enumerate(order) if dim != 1]
    chip = machine.policy.behaviour.chip
    partial, semaphores = contiguous([grad.shape[dim] for dim in order], dims, max(4, grad.itemsize), chip)
    return [("partial results", partial), ("semaphores", semaphores)]
