"""HQQ's solver: a zero for each group that brings what is read back closest to what there was.

source: hqq 0.2.8.post1 hqq/core/optimize.py: optimize_weights_proximal_legacy and its step, shrink_lp_op
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.play.pointwise import to
from memcalc.play.reduce import split
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

TURNS = 2


def solved(machine: Machine, tensor: Value, scale: Value, zero: Value, axis: int, narrow: str) -> tuple[Value, Value, Value]:
    """Levels in FP32, and scales and zeros in ``narrow``; those that were given are their caller's until it returns."""
    weights = to(machine, tensor, narrow)
    small_scale, small_zero = to(machine, scale, narrow), to(machine, zero, narrow)
    best = machine.new((), "float32", "tensor")
    held: tuple[Value, Value] | None = None
    for _ in range(TURNS):
        *made, found = _turn(machine, weights, small_scale, small_zero, axis)
        held = (made[0], made[1])
        small_zero = found
        del made, found
        best = _error(machine, weights, held[0])
    del weights, held
    levels = _rounded(machine, tensor, small_scale, small_zero)
    del best
    return levels, small_scale, small_zero


def _turn(machine: Machine, weights: Value, scale: Value, zero: Value, axis: int) -> tuple[Value, Value, Value]:
    """What is read back, its levels, and the next zero."""
    levels = _rounded(machine, weights, scale, zero)
    moved = machine.like(levels, "sub.Tensor")
    read = machine.like(moved, "div.Tensor")
    del moved
    error = _shrunk(machine, machine.like(weights, "sub.Tensor"))
    left = machine.like(weights, "sub.Tensor")
    product = machine.like(left, "mul.Tensor")
    del left
    difference = machine.like(levels, "sub.Tensor")
    del product
    rows, columns = difference.shape
    found = machine.new((1, columns) if axis == 0 else (rows, 1), difference.dtype, "mean.dim")
    split(machine, difference, [axis])
    del difference, error
    return read, levels, found


def _rounded(machine: Machine, tensor: Value, scale: Value, zero: Value) -> Value:
    """``round(tensor * scale + zero)``, clamped in place."""
    product = machine.like(tensor, "mul.Tensor")
    moved = machine.like(product, "add.Tensor")
    del product
    return machine.like(moved, "round")


def _shrunk(machine: Machine, given: Value) -> Value:
    """source: optimize.py:shrink_lp_op"""
    out = machine.like(given, "abs")
    power = machine.like(machine.wide(out), "pow.Tensor_Scalar")
    step = machine.like(power, "mul.Tensor")
    del power
    del step
    sign = machine.like(given, "sign")
    del sign
    return out


def _error(machine: Machine, weights: Value, read: Value) -> Value:
    """The mean distance, in FP32."""
    difference = machine.like(weights, "sub.Tensor")
    size = machine.like(difference, "abs")
    del difference
    mean = machine.new((), size.dtype, "mean")
    split(machine, size, [0, 1])
    del size
    wide = to(machine, mean, "float32")
    machine.scratch(1, "lt.Tensor")
    return wide
