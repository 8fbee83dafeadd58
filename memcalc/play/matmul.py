"""Matrix products, in the road that ``linear`` and ``matmul`` take to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.graph import Gradients, Node
from memcalc.play.reshape import _split, expand, merge_dims
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def linear(machine: Machine, value: Value, weight: Value, bias: Value | None = None, *, transposed: bool = False) -> Value:
    """``x @ weight.T + bias``; ``transposed`` takes the weight as transformers' ``Conv1D`` has it, ``(in, out)``.

    In autocast's dtype (ATen autocast_mode.h, AT_FORALL_LOWER_PRECISION_FP). Three dimensions with a bias are flattened to
    ``addmm``, as are contiguous four; without a bias it is ``matmul`` (ATen native/Linear.cpp:linear, _flatten_nd_linear).
    """
    value, weight, bias = _cast(machine, value, weight, bias)
    out = weight.shape[1] if transposed else weight.shape[0]
    shape = value.shape
    if bias is None and not transposed:
        weight = _turned(machine, weight)
    flat = value if len(shape) == 2 else merge_dims(machine, value, 0, len(shape) - 2)
    if bias is not None and not transposed and machine.policy.updates is not None:
        weight = _turned(machine, weight)
    made = _product(machine, flat, weight, bias, out, transposed)
    del flat
    if len(shape) == 2:
        return made
    return _unflattened(machine, made, (*shape[:-1], out))


def _turned(machine: Machine, weight: Value) -> Value:
    """``weight.t()``, made before the input is flattened: its gradient is stored after the input's has been added to others.

    With a bias it is made after, and turned back first, which matters where something happens as it comes (ATen
    native/Linear.cpp:linear, _flatten_nd_linear).
    """
    return machine.record(weight.detached(), (weight,), (), _turned_backward) if machine.wants(weight) else weight


def _turned_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (grad,)


def flattened_shape(value: Value) -> tuple[Count, ...]:
    """The dimensions of a value that a matrix product takes for rows."""
    return value.shape[:-1]


def _cast(machine: Machine, value: Value, weight: Value, bias: Value | None) -> tuple[Value, Value, Value | None]:
    if machine.autocast is None:
        return value, weight, bias
    # arguments of one call, evaluated from the last to the first
    low_bias = None if bias is None else machine.low(bias)
    low_weight = machine.low(weight)
    return machine.low(value), low_weight, low_bias


def _product(machine: Machine, value: Value, weight: Value, bias: Value | None, out: Count, straight: bool) -> Value:
    operator = "mm" if bias is None else "addmm"
    machine.blas(operator, lt=bias is not None)
    saved = (weight if machine.wants(value) else None, value if machine.wants(weight) else None)
    machine.foresee(*saved)
    made = machine.kept((value.shape[0], out), value.dtype, operator)
    meta = (weight.shape, value.shape, straight)
    if bias is None:
        return machine.record(made, (value, weight), saved, _product_backward, meta)
    return machine.record(made, (bias, value, weight), saved, _biased_backward, meta)


def _product_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # mm sorts mat2 before self: the weight's gradient is made first
    machine.blas("mm")
    of_weight = _of_weight(machine, node, grad) if node.needs(1) else None
    of_value = machine.new(node.meta[1], grad.dtype, "mm") if node.needs(0) else None
    return of_value, of_weight


def _biased_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # addmm sorts mat1 before mat2: the input's gradient is made first
    machine.blas("mm")
    of_value = machine.new(node.meta[1], grad.dtype, "mm") if node.needs(1) else None
    of_weight = _of_weight(machine, node, grad) if node.needs(2) else None
    return grad if node.needs(0) else None, of_value, of_weight


def _of_weight(machine: Machine, node: Node, grad: Value) -> Value:
    made = machine.new(node.meta[0], grad.dtype, "mm")
    made.view = not node.meta[2]  # the gradient of weight.t() turned back (TBackward0)
    return made


def _unflattened(machine: Machine, value: Value, shape: Any) -> Value:
    """``_unsafe_view``: a result that is no view to autograd, but shares its memory with one that is gone at once."""
    out = _split(value, 0, shape[:-1])
    out.view = False
    return machine.record(out, (value,), (), _unflatten_backward, len(shape) - 2)


def _unflatten_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    from memcalc.play.reshape import _merged

    return (_merged(machine, grad, 0, node.meta),)


def matmul(machine: Machine, first: Value, second: Value) -> Value:
    """``first @ second`` of as many dimensions: what is in front is flattened (ATen LinearAlgebra.cpp:_matmul_impl)."""
    if machine.autocast is not None:
        low = machine.low(second)
        first, second = machine.low(first), low
        del low
    front = len(first.shape) - 2
    batch = first.shape[:front]
    left = first if front == 1 else merge_dims(machine, first, 0, front - 1)
    second = expand(machine, second, (*batch, *second.shape[front:]))
    right = second if front == 1 else merge_dims(machine, second, 0, front - 1)
    out = bmm(machine, left, right)
    del left, right
    if front == 1:
        return out
    made = _split(out, 0, batch)
    made.view = False
    return machine.record(made, (out,), (), _unflatten_backward, front - 1)


def bmm(machine: Machine, first: Value, second: Value) -> Value:
    """A batch of matrix products."""
    machine.blas("bmm")
    saved = (second if machine.wants(first) else None, first if machine.wants(second) else None)
    machine.foresee(*saved)
    out = machine.kept((first.shape[0], first.shape[1], second.shape[2]), first.dtype, "bmm")
    return machine.record(out, (first, second), saved, _bmm_backward, (first.shape, second.shape))


def _bmm_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    of_first = of_second = None
    machine.blas("bmm")
    if node.needs(1):
        of_second = machine.new(node.meta[1], grad.dtype, "bmm")
    if node.needs(0):
        of_first = machine.new(node.meta[0], grad.dtype, "bmm")
    return of_first, of_second
