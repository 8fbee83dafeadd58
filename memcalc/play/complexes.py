"""Pairs of FP32 numbers seen as complex ones, and their products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def as_complex(machine: Machine, value: Value) -> Value:
    """``torch.view_as_complex``: the last dimension of two goes."""
    return machine.record(_complex(value), (value,), (), _from_complex)


def as_real(machine: Machine, value: Value) -> Value:
    """``torch.view_as_real``: a last dimension of two more."""
    return machine.record(_real(value), (value,), (), _from_real)


def _complex(value: Value) -> Value:
    last = len(value.shape) - 1
    order = None if value.order is None else tuple(d for d in value.order if d != last)
    gaps = tuple(d for d in value.gaps if d != last)
    if order == tuple(range(last)):
        order = None
    return Value(value.storage, value.shape[:-1], "complex64", order, True, gaps)


def _real(value: Value) -> Value:
    order = None if value.order is None else (*value.order, len(value.shape))
    return Value(value.storage, (*value.shape, 2), "float32", order, True, value.gaps)


def _from_complex(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (_real(grad),)


def _from_real(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (_complex(grad),)


def turned_by(machine: Machine, value: Value, angles: Value) -> Value:
    """A complex value times complex numbers without a gradient."""
    machine.foresee(angles)
    return machine.record(machine.like(value, "mul.Tensor"), (value,), (angles,), _turned_backward)


def _turned_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # FunctionsManual.cpp:mul_tensor_backward: grad * other.conj(), a bit that ConjugateFallback.cpp resolves by a copy
    straight = machine.like(saved[0], "conj_physical")
    out = machine.like(grad, "mul.Tensor")
    del straight
    return (out,)
