"""Operators that write over their operand, and bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def _again(value: Value) -> Value:
    """The same memory, whose history goes on."""
    return Value(value.storage, value.shape, value.dtype, value.order, value.view, value.gaps)


def scaled_in_place(machine: Machine, value: Value, operator: str = "mul.Tensor") -> Value:
    """A value times (or divided by) a number, in its own memory."""
    return machine.record(_again(value), (value,), (), _scaled_backward, operator)


def _scaled_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.like(grad, node.meta),)


def added_in_place(machine: Machine, value: Value, other: Value) -> Value:
    """``value += other``."""
    return machine.record(_again(value), (value, other), (), _added_backward)


def _added_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return grad if node.needs(0) else None, grad if node.needs(1) else None


def clamp(machine: Machine, value: Value, *, least: bool = True) -> Value:
    """A value between two numbers, or under one; it is saved, and asked again in backward which of it is inside."""
    return machine.record(machine.like(value, "clamp"), (value,), (value,), _clamp_backward, least)


def _clamp_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """FunctionsManual.cpp:clamp_backward: where((self >= min).logical_and_(self <= max), grad, 0)"""
    zero = machine.new((), grad.dtype, "scalar_tensor")
    least = machine.like(saved[0], "ge.Scalar", "bool") if node.meta else None
    most = machine.like(saved[0], "le.Scalar", "bool")
    out = machine.like(grad, "where.self")
    del least, most, zero
    return (out,)
