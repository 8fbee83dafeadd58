"""Normalisations as the models write them out, step by step.

Locals stand for the locals of the modules: what they hold lives until the function returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcalc.play.norms import layer_norm
from memcalc.play.pointwise import mul, power, rsqrt, shifted, sub, to
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


def rms_float_scale(machine: Machine, value: Value, weight: Value | None, bias: Value | None = None) -> Value:
    """Normalised and scaled in FP32, then cast back.

    source: transformers 5.23.0 models/olmo2/modeling_olmo2.py:Olmo2RMSNorm.forward
    """
    dtype = value.dtype
    value = to(machine, value, "float32")
    variance = mean_last(machine, power(machine, value))
    value = mul(machine, value, rsqrt(machine, shifted(machine, variance)))
    assert weight is not None
    return to(machine, mul(machine, weight, value), dtype)


def rms_plus_one(machine: Machine, value: Value, weight: Value | None, bias: Value | None = None) -> Value:
    """Normalised in FP32, scaled there by one plus the weight, then cast back.

    source: transformers 5.23.0 models/gemma/modeling_gemma.py:GemmaRMSNorm.forward
    """
    assert weight is not None
    out = _over_root(machine, to(machine, value, "float32"))
    out = mul(machine, out, shifted(machine, to(machine, weight, "float32")))
    return to(machine, out, value.dtype)


def _over_root(machine: Machine, value: Value) -> Value:
    """source: modeling_gemma.py:GemmaRMSNorm._norm"""
    return mul(machine, value, rsqrt(machine, shifted(machine, mean_last(machine, power(machine, value)))))


def layer_float(machine: Machine, value: Value, weight: Value | None, bias: Value | None = None) -> Value:
    """Torch's layer normalisation of an FP32 copy, cast back.

    source: transformers 5.23.0 models/olmo/modeling_olmo.py:OlmoLayerNorm.forward
    """
    return to(machine, layer_norm(machine, to(machine, value, "float32"), weight, bias), value.dtype)


def layer_composed(machine: Machine, value: Value, weight: Value | None, bias: Value | None = None) -> Value:
    """A layer normalisation written out in FP32; the weight may have a row for each head.

    source: transformers 5.23.0 models/cohere/modeling_cohere.py:CohereLayerNorm.forward
    """
    dtype = value.dtype
    value = to(machine, value, "float32")
    mean = mean_last(machine, value)
    variance = mean_last(machine, power(machine, sub(machine, value, mean)))
    value = mul(machine, sub(machine, value, mean), rsqrt(machine, shifted(machine, variance)))
    assert weight is not None
    value = mul(machine, to(machine, weight, "float32"), value)
    return to(machine, value, dtype)


def _layer(machine: Machine, value: Value, weight: Value | None, bias: Value | None) -> Value:
    return layer_norm(machine, value, weight, bias)


NORMS: dict[str, Callable[[Machine, Value, Value | None, Value | None], Value]] = {
    "rms": rms,
    "rms_float_scale": rms_float_scale,
    "rms_plus_one": rms_plus_one,
    "layer": _layer,
    "layer_float": layer_float,
    "layer_composed": layer_composed,
}
"""By a norm's ``function``."""
