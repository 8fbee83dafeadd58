"""Parts of a fresh value written one after the other, through views of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def written_into(machine: Machine, base: Value, part: Value) -> Value:
    """``base[...] = part`` for a part of the last dimension; the base's history goes on from there."""
    out = Value(base.storage, base.shape, base.dtype, base.order, base.view, base.gaps)
    return machine.record(out, (base, part), (), _written_backward, (base.shape, part.shape))


def _written_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """A copy of the gradient, of which the part is copied and then zeroed.

    source: pytorch torch/csrc/autograd/functions/tensor.cpp: CopySlices::apply_impl, CopyBackwards::apply
    """
    shape, part = node.meta
    whole = machine.new(shape, grad.dtype, "new_empty_strided")
    of_part = machine.new(part, grad.dtype, "clone")
    if node.needs(0):
        zeros = machine.new(part, grad.dtype, "zeros_like")
        del zeros
        return whole, of_part
    return None, of_part
