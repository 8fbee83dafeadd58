"""Values picked by indices, and the zeros their gradients are scattered into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def gather(machine: Machine, value: Value, index: Value) -> Value:
    """``torch.gather``: as many elements as there are indices."""
    out = machine.new(index.shape, value.dtype, "gather")
    return machine.record(out, (value,), (index,), _gather_backward, value.shape)


def _gather_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # FunctionsManual.cpp:gather_backward: zeros of the source's shape, added to in place
    return (machine.new(node.meta, grad.dtype, "new_zeros"),)
