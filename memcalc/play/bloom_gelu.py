"""Bloom's GELU: a function of its own for autograd, written out in both directions.

source: transformers 5.23.0 models/bloom/modeling_bloom.py: GeLUFunction, bloom_gelu_forward, bloom_gelu_back
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play import pointwise as p
from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def bloom_gelu(machine: Machine, value: Value) -> Value:
    """``0.5 x (1 + tanh(c x (1 + 0.044715 x²)))``; its operand alone is saved."""
    before, machine.recording = machine.recording, False
    out = p.mul(machine, p.scaled(machine, value), p.shifted(machine, _tanh(machine, value)))
    machine.recording = before
    return machine.record(out, (value,), (value,), _backward)


def _tanh(machine: Machine, value: Value) -> Value:
    inner = p.mul(machine, p.scaled(machine, value), p.shifted(machine, p.mul(machine, p.scaled(machine, value), value)))
    return p.tanh(machine, inner)


def _backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    (value,) = saved
    tanh = _tanh(machine, value)
    whole = p.add(
        machine,
        p.mul(machine, p.scaled(machine, value), _slope(machine, tanh, value)),
        p.scaled(machine, p.shifted(machine, tanh)),
    )
    return (p.mul(machine, whole, grad),)


def _slope(machine: Machine, tanh: Value, value: Value) -> Value:
    return p.mul(
        machine,
        p.shifted(machine, p.mul(machine, tanh, tanh), "rsub.Scalar"),
        p.shifted(machine, p.mul(machine, p.scaled(machine, value), value)),
    )
