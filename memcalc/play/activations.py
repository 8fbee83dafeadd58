"""Nonlinearities by the names configs give them (transformers 5.23.0 activations.py:ACT2CLS)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcalc.play import pointwise as p
from memcalc.play.bloom_gelu import bloom_gelu
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def gelu_new(machine: Machine, value: Value) -> Value:
    """GELU by tanh, written out (NewGELUActivation.forward): ``0.5 x (1 + tanh(c (x + 0.044715 x³)))``."""
    half = p.scaled(machine, value)
    return p.mul(machine, half, p.shifted(machine, p.tanh(machine, p.scaled(machine, _cubed(machine, value)))))


def _cubed(machine: Machine, value: Value) -> Value:
    return p.add(machine, value, p.scaled(machine, p.power(machine, value)))


def gelu_fast(machine: Machine, value: Value) -> Value:
    """Another order of the same (FastGELUActivation.forward): ``0.5 x (1 + tanh(c x (1 + 0.044715 x x)))``."""
    half = p.scaled(machine, value)
    inner = p.mul(
        machine,
        p.scaled(machine, value),
        p.shifted(machine, p.mul(machine, p.scaled(machine, value), value)),
    )
    inner = p.tanh(machine, inner)
    inner = p.shifted(machine, inner)
    return p.mul(machine, half, inner)


def quick_gelu(machine: Machine, value: Value) -> Value:
    """``x sigmoid(1.702 x)`` (QuickGELUActivation.forward)."""
    return p.mul(machine, value, p.sigmoid(machine, p.scaled(machine, value)))


def squared_relu(machine: Machine, value: Value) -> Value:
    """``relu(x)²`` (ReLUSquaredActivation.forward)."""
    return p.power(machine, p.relu(machine, value))


def linear(machine: Machine, value: Value) -> Value:
    """The value itself."""
    return value


ACTIVATIONS: dict[str, Callable[[Machine, Value], Value]] = {
    "bloom_gelu": bloom_gelu,
    "gelu": p.gelu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu_pytorch_tanh": p.gelu,
    "gelu_python_tanh": p.gelu,
    "quick_gelu": quick_gelu,
    "relu": p.relu,
    "relu2": squared_relu,
    "silu": p.silu,
    "swish": p.silu,
    "tanh": p.tanh,
    "sigmoid": p.sigmoid,
    "mish": p.mish,
    "leaky_relu": p.leaky_relu,
    "linear": linear,
}


def activated(machine: Machine, name: str, value: Value) -> Value:
    """A value under the nonlinearity of that name.

    Raises:
        NotModelledError: there is none of that name.
    """
    function = ACTIVATIONS.get(name)
    if function is None:
        from memcalc.errors import NotModelledError

        raise NotModelledError("model.hidden_act", name, "is an activation whose memory is not modelled", "use engine trace")
    return function(machine, value)
