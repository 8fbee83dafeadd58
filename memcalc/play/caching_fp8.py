"""A cache of keys and values in 8-bit floating point, as transformers' ``QuantizedCache`` keeps them with its back end ``fp8``.

source: transformers 5.23.0 cache_utils.py: Fp8QuantizedLayer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.arrays import Count
from memcalc.errors import InputError
from memcalc.play.caching import KeyValueCache, LayerCache, Pair, joined, long_as
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

FP8 = "float8_e4m3fn"


class FP8Cache(KeyValueCache):
    """Keys and values in 8-bit floating point with one scale for each tensor; attention reads them dequantised."""

    def found(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> None:
        """source: Fp8QuantizedLayer.lazy_initialization"""
        layer.keys = machine.before(long_as(key, self.past), FP8, "cache", "keys")
        layer.values = machine.before(long_as(value, self.past), FP8, "cache", "values")
        layer.more = tuple(machine.before((), "float32", "cache", f"scale of the {name}") for name in ("keys", "values"))

    def updated(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> Pair:
        """source: Fp8QuantizedLayer.update

        Raises:
            InputError: the layer slides, and QuantizedCache takes none that does.
        """
        if window is not None:
            raise InputError("inference.cache", "quantized-fp8", "takes no layers that slide", "use cache dynamic or static")
        if layer.keys is None:
            layer.keys, of_keys = _first(machine, key, "keys")
            layer.values, of_values = _first(machine, value, "values")
            layer.more = of_keys, of_values
            return key, value
        assert layer.values is not None
        keys, values = layer.keys, layer.values  # the function's locals until it returns
        new_keys, new_values = _quantised(machine, key), _quantised(machine, value)
        layer.keys = joined(machine, keys, new_keys, "keys")
        layer.values = joined(machine, values, new_values, "values")
        read = _dequantised(machine, layer.keys, key.dtype)
        return read, _dequantised(machine, layer.values, key.dtype)

    def reach(self, machine: Machine, tokens: Count, window: Count | None = None) -> Count:
        """source: DynamicLayer.get_mask_sizes"""
        return self.past + tokens


def _first(machine: Machine, value: Value, name: str) -> tuple[Value, Value]:
    """Quantised by its own amplitude (Fp8QuantizedLayer._quantize)."""
    size = machine.like(value, "abs")
    most = machine.new((), value.dtype, "amax")
    del size
    if value.dtype != "float32":
        most = machine.new((), "float32", "_to_copy")
    most = machine.new((), "float32", "div.Tensor")
    scale = machine.new((), "float32", "clamp", role="cache", name=f"scale of the {name}")
    del most
    made = _quantised(machine, value, name)
    return made, scale


def _quantised(machine: Machine, value: Value, name: str = "") -> Value:
    wide = value if value.dtype == "float32" else machine.like(value, "_to_copy", "float32")
    parts = machine.like(wide, "div.Tensor")
    del wide
    made = machine.like(parts, "_to_copy", FP8)
    if name:
        made.storage.life.role, made.storage.life.name = "cache", name
    return made


def _dequantised(machine: Machine, value: Value, dtype: str) -> Value:
    wide = machine.like(value, "_to_copy", "float32")
    made = machine.like(wide, "mul.Tensor")
    del wide
    return made if dtype == "float32" else machine.like(made, "_to_copy", dtype)
