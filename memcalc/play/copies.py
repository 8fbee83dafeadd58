"""Columns copied to where an index says, out of place and in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def index_copy(machine: Machine, value: Value, index: Value, source: Value) -> Value:
    """``value.index_copy(-1, index, source)``: a copy of the value, into which the source's columns go."""
    return _recorded(machine, machine.like(value, "index_copy"), value, index, source)


def index_copy_in_place(machine: Machine, value: Value, index: Value, source: Value) -> Value:
    """``value.index_copy_(-1, index, source)``."""
    return _recorded(machine, Value(value.storage, value.shape, value.dtype), value, index, source)


def _recorded(machine: Machine, out: Value, value: Value, index: Value, source: Value) -> Value:
    # the source is saved for its shape alone: grad.index_select(dim, index).expand_as(source) (derivatives.yaml: index_copy)
    return machine.record(out, (value, source), (index, source), _index_copy_backward, source.shape)


def _index_copy_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # derivatives.yaml: self: grad.index_fill(dim, index, 0); source: grad.index_select(dim, index)
    of_value = machine.like(grad, "index_fill") if node.needs(0) else None
    return of_value, machine.new(node.meta, grad.dtype, "index_select") if node.needs(1) else None
