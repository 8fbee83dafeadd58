"""Normalisations as the models write them out, step by step.

Locals stand for the locals of the modules: what they hold lives until the function returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcalc.play.norms import layer_norm
from memcalc.play.pointwise import mul, power, rsqrt, shifted, to
from memcalc.play.reduce import mean_last
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def rms(machine: Machine, value: Value, weight: Value | None, bias: Value | None = None) -> Value:
    """Normalised in FP32, cast back, then scaled.

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaRMSNorm.forward
    """
    dtype = value.dtype
    value = to(machine, value, "float32")
    variance = mean_last(machine, power(machine, value))
    value = mul(machine, value, rsqrt(machine, shifted(machine, variance)))
    assert weight is not None
    return mul(machine, weight, to(machine, value, dtype))


def _layer(machine: Machine, value: Value, weight: Value | None, bias: Value | None) -> Value:
    return layer_norm(machine, value, weight, bias)


NORMS: dict[str, Callable[[Machine, Value, Value | None, Value | None], Value]] = {"rms": rms, "layer": _layer}
"""By a norm's ``function``."""
