"""Operators that work element by element, and their backward.

A product's gradients are made in the order of the formulas' names, as PyTorch's generated code has them (pytorch
tools/autograd/derivatives.yaml; torch/csrc/autograd/generated/Functions.cpp sorts by name: ``other`` before ``self``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Shape, Value, alike

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def broadcast(first: Shape, second: Shape) -> Shape:
    """The shape of two operands together; an extent is stretched where it is the literal 1.

    >>> broadcast((2, 4, 8, 16), (1, 1, 8, 16)), broadcast((4, 8), (8,))
    ((2, 4, 8, 16), (4, 8))
    """
    if alike(first, second):
        return first
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    offset = len(longer) - len(shorter)
    return (*longer[:offset], *(b if _is_one(a) else a for a, b in zip(longer[offset:], shorter, strict=True)))


def _is_one(extent: Any) -> bool:
    return isinstance(extent, int) and extent == 1


RANK = {"bool": 0, "uint8": 1, "int8": 1, "int32": 2, "int64": 3, "float16": 4, "bfloat16": 4, "float32": 6, "float64": 7}


def promoted(first: Value, second: Value) -> str:
    """The dtype of two operands together; a 0-dim value of the same kind gives way (ATen TypeProperties.cpp:result_type)."""
    if first.dtype == second.dtype:
        return first.dtype
    kinds = ["float" in v.dtype for v in (first, second)]
    if kinds[0] == kinds[1] and bool(first.shape) != bool(second.shape):
        return first.dtype if first.shape else second.dtype
    if {first.dtype, second.dtype} == {"float16", "bfloat16"}:
        return "float32"
    return max((first.dtype, second.dtype), key=RANK.__getitem__)


def _binary(machine: Machine, first: Value, second: Value, operator: str, dtype: str | None = None) -> Value:
    shape = broadcast(first.shape, second.shape)
    whole = len(first.shape) == len(shape) and alike(first.shape, shape) and (first.dense or first.order is not None)
    leads = first if whole else second
    order = leads.order if len(leads.shape) == len(shape) else None
    return machine.new(shape, dtype or promoted(first, second), operator, order)


def add(machine: Machine, first: Value, second: Value) -> Value:
    """``first + second``."""
    return machine.record(_binary(machine, first, second, "add.Tensor"), (first, second), (), _add_backward)


def _add_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return grad if node.needs(0) else None, grad if node.needs(1) else None


def sub(machine: Machine, first: Value, second: Value) -> Value:
    """``first - second``."""
    return machine.record(_binary(machine, first, second, "sub.Tensor"), (first, second), (), _sub_backward)


def _sub_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    other = machine.like(grad, "neg") if node.needs(1) else None
    return grad if node.needs(0) else None, other


def mul(machine: Machine, first: Value, second: Value) -> Value:
    """``first * second``."""
    saved = (second if machine.wants(first) else None, first if machine.wants(second) else None)
    machine.foresee(*saved)
    out = _binary(machine, first, second, "mul.Tensor")
    return machine.record(out, (first, second), saved, _mul_backward)


def _mul_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    second, first = saved
    other = _binary(machine, grad, first, "mul.Tensor") if node.needs(1) else None
    this = _binary(machine, grad, second, "mul.Tensor") if node.needs(0) else None
    return this, other


def div(machine: Machine, first: Value, second: Value) -> Value:
    """``first / second``."""
    out = _binary(machine, first, second, "div.Tensor")
    if not machine.wants(first, second):
        return out
    return machine.record(out, (first, second), (second, first if machine.wants(second) else None), _div_backward)


def _div_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    second, first = saved
    other = None
    if node.needs(1):  # FunctionsManual.cpp:div_tensor_other_grad: -grad * ((self / other) / other)
        minus = machine.like(grad, "neg")
        once = _binary(machine, first, second, "div.Tensor")
        twice = _binary(machine, once, second, "div.Tensor")
        del once
        other = _binary(machine, minus, twice, "mul.Tensor")
        del minus, twice
    this = _binary(machine, grad, second, "div.Tensor") if node.needs(0) else None
    return this, other


def scaled(machine: Machine, value: Value, operator: str = "mul.Tensor") -> Value:
    """A value times (or divided by) a number."""
    return machine.record(machine.like(value, operator), (value,), (), _scaled_backward, operator)


def _scaled_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.like(grad, node.meta),)


def shifted(machine: Machine, value: Value, operator: str = "add.Tensor") -> Value:
    """A value plus a number (or minus one)."""
    return machine.record(machine.like(value, operator), (value,), (), _same)


def _same(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (grad,)


def neg(machine: Machine, value: Value) -> Value:
    """``-value``."""
    return machine.record(machine.like(value, "neg"), (value,), (), _scaled_backward, "neg")


def to(machine: Machine, value: Value, dtype: str) -> Value:
    """``value.to(dtype)``: itself where it has that dtype."""
    if value.dtype == dtype:
        return value
    return machine.record(machine.like(value, "_to_copy", dtype), (value,), (), _to_backward, value.dtype)


def _to_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (to(machine, grad, node.meta),)


def power(machine: Machine, value: Value) -> Value:
    """``value`` to the power of a number other than 0 and 1; in FP32 under autocast."""
    value = machine.wide(value)
    return machine.record(machine.like(value, "pow.Tensor_Scalar"), (value,), (value,), _power_backward)


def _power_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # FunctionsManual.cpp:pow_backward: grad * (exponent * self.pow(exponent - 1))
    lower = machine.like(saved[0], "pow.Tensor_Scalar")
    times = machine.like(lower, "mul.Scalar")
    return (_binary(machine, grad, times, "mul.Tensor"),)


def rsqrt(machine: Machine, value: Value) -> Value:
    """``1 / sqrt(value)``; in FP32 under autocast."""
    value = machine.wide(value)
    out = machine.like(value, "rsqrt")
    return machine.record(out, (value,), (out,), _rsqrt_backward)


def _rsqrt_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # derivatives.yaml: -0.5 * grad * result.pow(3)
    cube = machine.like(saved[0], "pow.Tensor_Scalar")
    half = machine.like(grad, "mul.Scalar")
    return (_binary(machine, half, cube, "mul.Tensor"),)


def unary(
    saves: str, backward: Callable[..., Gradients], name: str, *, wide: bool = False
) -> Callable[[Machine, Value], Value]:
    """An operator of one operand that saves its operand, its result or nothing."""

    def run(machine: Machine, value: Value) -> Value:
        if wide:
            value = machine.wide(value)
        out = machine.like(value, name)
        if not machine.wants(value):
            return out
        kept = {"self": (value,), "result": (out,), "": ()}[saves]
        return machine.record(out, (value,), kept, backward)

    return run


def _kernel(name: str) -> Callable[..., Gradients]:
    """A backward that is one kernel."""

    def backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
        return (machine.like(grad, name),)

    return backward


silu = unary("self", _kernel("silu_backward"), "silu")
gelu = unary("self", _kernel("gelu_backward"), "gelu")
threshold_backward = _kernel("threshold_backward")
relu = unary("result", threshold_backward, "relu")
tanh = unary("result", _kernel("tanh_backward"), "tanh")
sigmoid = unary("result", _kernel("sigmoid_backward"), "sigmoid")
elu = unary("self", _kernel("elu_backward"), "elu")
mish = unary("self", _kernel("mish_backward"), "mish")
hardswish = unary("self", _kernel("hardswish_backward"), "hardswish")
leaky_relu = unary("self", _kernel("leaky_relu_backward"), "leaky_relu")
softplus = unary("self", _kernel("softplus_backward"), "softplus", wide=True)
exp = unary("result", _kernel("mul.Tensor"), "exp", wide=True)


def where(machine: Machine, mask: Value, value: Value, other: Value | None = None) -> Value:
    """``torch.where`` of a mask, and of a number where no other value is given."""
    shape = broadcast(mask.shape, value.shape)
    out = machine.new(shape, value.dtype, "where.self", value.order if alike(value.shape, shape) else None)
    return machine.record(out, (value, other), (mask,), _where_backward)


def _where_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return tuple(_chosen(machine, grad) if node.needs(i) else None for i in range(2))


def _chosen(machine: Machine, grad: Value) -> Value:
    zero = machine.new((), grad.dtype, "scalar_tensor")  # where(condition, grad, 0)
    out = machine.like(grad, "where.self")
    del zero
    return out


def masked_fill(machine: Machine, value: Value, mask: Value) -> Value:
    """``value.masked_fill(mask, number)``."""
    shape = broadcast(value.shape, mask.shape)
    out = machine.new(shape, value.dtype, "masked_fill.Scalar", value.order if alike(value.shape, shape) else None)
    return machine.record(out, (value,), (mask,), _masked_fill_backward)


def _masked_fill_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.like(grad, "masked_fill.Scalar"),)


def compare(machine: Machine, value: Value, other: Value | None = None, operator: str = "eq.Tensor") -> Value:
    """A comparison: bytes."""
    shape = value.shape if other is None else broadcast(value.shape, other.shape)
    return machine.new(shape, "bool", operator)


def clamped_in_place(machine: Machine, value: Value) -> Value:
    """``value.clamp_(least, most)``: backward is kept a copy of what was there (derivatives.yaml: clamp saves ``self``)."""
    copy = machine.like(value, "clone") if machine.wants(value) else None
    out = value.detached()
    out.view = value.view
    return machine.record(out, (value,), (copy,), _clamped_backward)


def _clamped_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # FunctionsManual.cpp:clamp_backward: where((self >= min).logical_and_(self <= max), grad, zero), all of them its locals
    zero = machine.new((), grad.dtype, "scalar_tensor")
    low = machine.like(saved[0], "ge.Scalar", "bool")
    high = machine.like(saved[0], "le.Scalar", "bool")
    out = machine.like(grad, "where.self")
    del zero, low, high
    return (out,)


def dropout(machine: Machine, value: Value, probability: float) -> Value:
    """Dropout in training: a mask of bytes is kept (pytorch Dropout.cpp:dropout, native_dropout on CUDA)."""
    if not machine.training or probability == 0:
        return value
    if probability >= 1:
        zeros = machine.like(value, "zeros")
        return machine.record(_binary(machine, value, zeros, "mul.Tensor"), (value,), (zeros,), _scaled_backward, "mul.Tensor")
    out = machine.like(value, "native_dropout")
    mask = machine.like(value, "native_dropout", "bool")
    return machine.record(out, (value,), (mask,), _dropout_backward)


def _dropout_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.like(grad, "native_dropout_backward"),)
