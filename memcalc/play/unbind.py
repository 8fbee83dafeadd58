"""A dimension taken apart into its indices, whose gradients are stacked again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def unbind(machine: Machine, value: Value, dim: int) -> list[Value]:
    """Every index of a dimension, which goes: views (pytorch TensorShape.cpp:unbind); its extent is a plain number."""
    dim %= len(value.shape)
    outs = [_taken(value, dim) for _ in range(int(value.shape[dim]))]
    if machine.wants(value):
        machine.attach(outs, (value,), ((value.node, value.index),), (), _unbind_backward, (value.shape, value.dtype))
    return outs


def _taken(value: Value, dim: int) -> Value:
    """One index: what lies inside the dimension in memory no longer lies closely in what is outside it."""
    memory = value.order or tuple(range(len(value.shape)))
    place = memory.index(dim)
    inner = memory[place + 1] if place + 1 < len(memory) else memory[place - 1]
    gaps = {d for d in value.gaps if d != dim} | ({inner} if place else set())
    moved = {d: d if d < dim else d - 1 for d in memory}
    order = tuple(moved[d] for d in memory if d != dim)
    shape = (*value.shape[:dim], *value.shape[dim + 1 :])
    lies = None if order == tuple(range(len(shape))) else order
    return Value(value.storage, shape, value.dtype, lies, True, tuple(sorted(moved[d] for d in gaps)))


def _unbind_backward(machine: Machine, node: Node, saved: Any, grads: Any) -> Gradients:
    # FunctionsManual.cpp:unbind_backward: at::stack, of zeros where an index has no gradient
    shape, dtype = node.meta
    grads = [grads] if node.results == 1 else grads
    if all(grad is None for grad in grads):
        return (None,)
    return (machine.new(shape, dtype, "stack"),)
