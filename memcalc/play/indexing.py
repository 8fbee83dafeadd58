"""Rows picked by index, and what puts their gradients back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def picked(machine: Machine, value: Value, *indices: Value) -> Value:
    """``value[i, j]`` by whole-number tensors of one shape over the first dimensions."""
    shape = (*indices[0].shape, *value.shape[len(indices) :])
    out = machine.new(shape, value.dtype, "index.Tensor")
    return machine.record(out, (value,), indices, _picked_backward, value.shape)


def _picked_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.new(node.meta, grad.dtype, "new_zeros"),)
