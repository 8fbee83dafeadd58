"""Values picked by indices, and the zeros their gradients are scattered into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.graph import Gradients, Node
from memcalc.play.reduce import split
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def gather(machine: Machine, value: Value, index: Value) -> Value:
    """``torch.gather``: as many elements as there are indices."""
    out = machine.new(index.shape, value.dtype, "gather")
    # derivatives.yaml: gather_backward(grad, self, dim, index, sparse_grad)
    return machine.record(out, (value,), (value, index), _gather_backward, value.shape)


def _gather_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # TensorAdvancedIndexing.cpp:gather_backward: zeros of the source's shape, added to in place
    return (machine.new(node.meta, grad.dtype, "new_zeros"),)


def repeat(machine: Machine, value: Value, times: Count) -> Value:
    """``value.repeat(times, 1, …)``: so many copies one after another, even of one."""
    out = machine.new((value.shape[0] * times, *value.shape[1:]), value.dtype, "repeat")
    return machine.record(out, (value,), (), _repeat_backward, (times, value.shape))


def _repeat_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # FunctionsManual.cpp:repeat_backward: summed over the copies, where there are several
    times, shape = node.meta
    if machine.same(times, 1):
        return (grad,)
    if not grad.contiguous:
        grad = machine.new(grad.shape, grad.dtype, "clone")
    out = machine.new(shape, grad.dtype, "sum.dim_IntList")
    split(machine, Value(grad.storage, (times, *shape), grad.dtype), [0])
    return (out,)
