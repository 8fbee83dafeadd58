"""Convolutions over one dimension, as cuDNN runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def conv1d(machine: Machine, value: Value, weight: Value) -> Value:
    """``(n, in, length)`` by ``(out, in / groups, 1)``: a kernel of one position, so that the length stays.

    source: native/Convolution.cpp:_convolution; cudnn/Conv_v8.cpp:run_single_conv, whose workspace is a bound: every operand
    once more, in FP32 at least
    """
    if machine.autocast is not None:
        weight = machine.low(weight)
        value = machine.low(value)
    machine.foresee(value, weight)
    out = machine.kept((value.shape[0], weight.shape[0], value.shape[2]), value.dtype, "convolution")
    if not machine.found():
        machine.scratches([*_copied(value, weight), ("cuDNN workspace", _workspace(value, weight, out))])
    return machine.record(out, (value, weight), (value, weight), _conv1d_backward)


def _copied(*values: Value) -> list[tuple[str, Count]]:
    return [("contiguous operand", value.nbytes) for value in values if not value.contiguous]


def _workspace(*values: Value) -> Count:
    total: Count = 0
    for value in values:
        total = total + value.numel * max(4, value.itemsize)
    return total


def _conv1d_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    value, weight = saved
    of_value = machine.new(value.shape, grad.dtype, "convolution_backward") if node.needs(0) else None
    of_weight = machine.new(weight.shape, grad.dtype, "convolution_backward") if node.needs(1) else None
    machine.scratches([*_copied(grad, value, weight), ("cuDNN workspace", _workspace(grad, value, weight))])
    return of_value, of_weight
