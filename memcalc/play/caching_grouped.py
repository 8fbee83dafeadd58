"""Caches that quantise in groups, and keep the newest tokens as they are until there are enough of them to quantise anew.

What quantises is a back end's, ``memcalc.play.quanto`` or ``memcalc.play.hqq``.

source: transformers 5.23.0 cache_utils.py: QuantizedLayer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from memcalc.arrays import Count, maximum, minimum
from memcalc.cache_options import CacheOptions
from memcalc.errors import InputError
from memcalc.play.caching import KeyValueCache, LayerCache, Pair, joined, long_as
from memcalc.play.reshape import contiguous
from memcalc.play.values import Shape, Storage, Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


class Packed:
    """A quantised tensor.

    Attributes:
        shape: of what was quantised, ``(batch, heads, tokens, head dimension)``.
        dtype: what it is dequantised to.
        axis: along which it was grouped.
        parts: what is kept of it: packed data, and a scale and a shift for each group.
    """

    __slots__ = ("axis", "dtype", "parts", "shape")

    def __init__(self, shape: Shape, dtype: str, axis: int, parts: tuple[Value, ...]) -> None:
        self.shape, self.dtype, self.axis, self.parts = shape, dtype, axis, parts


class Backend(Protocol):
    """What quantises."""

    name: str

    def quantised(self, machine: Machine, tensor: Value, axis: int, name: str, dtype: str) -> Packed:
        """A contiguous tensor, packed; ``dtype`` is the keys'."""

    def dequantised(self, machine: Machine, packed: Packed) -> Value:
        """The same, as it is read: of the shape and dtype that it was."""

    def found(self, machine: Machine, shape: Shape, dtypes: tuple[str, str], axis: int, name: str) -> Packed:
        """One that was there before the first operator; ``dtypes`` are its own and the keys'."""


class GroupedLayer(LayerCache):
    """What such a cache holds of one layer.

    Attributes:
        old_keys: quantised; None before the first forward.
        old_values: likewise.
    """

    __slots__ = ("old_keys", "old_values")

    def __init__(self) -> None:
        super().__init__()
        self.old_keys: Packed | None = None
        self.old_values: Packed | None = None

    def storages(self) -> set[Storage]:
        """Memory it holds."""
        old = (packed.parts for packed in (self.old_keys, self.old_values) if packed is not None)
        return super().storages().union(*({part.storage for part in parts} for parts in old))


class GroupedCache(KeyValueCache):
    """Keys and values in groups that share a scale, the newest as they are; attention reads all of them in full precision.

    Args:
        past: tokens that it has seen when a forward begins.
        context: tokens in it when the step that is asked for begins.
        options: how it quantises.
        backend: what quantises.
    """

    kept_as = GroupedLayer

    def __init__(self, past: Count, context: Count, options: CacheOptions, backend: Backend) -> None:
        super().__init__(past)
        self.options, self.backend = options, backend
        # what came as the prompt, so that the step that is asked for quantises anew wherever the context is long enough
        self.prompt = maximum(context - options.cycle + 1, 1)

    def found(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> None:
        """source: QuantizedLayer.update"""
        assert isinstance(layer, GroupedLayer)
        old = minimum(self.prompt, self.past)
        make, options = self.backend.found, self.options
        layer.old_keys = make(machine, long_as(key, old), (key.dtype, key.dtype), options.axis_key, "keys")
        layer.old_values = make(machine, long_as(value, old), (value.dtype, key.dtype), options.axis_value, "values")
        if machine.decide(self.past > old):
            dtype = key.dtype if key.dtype == value.dtype else "float32"
            layer.keys = machine.before(long_as(key, self.past - old), key.dtype, "cache", "newest keys")
            layer.values = machine.before(long_as(value, self.past - old), dtype, "cache", "newest values")

    def updated(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> Pair:
        """source: QuantizedLayer.update

        Raises:
            InputError: the layer slides, and QuantizedCache takes none that does.
        """
        if window is not None:
            raise InputError(
                "inference.cache", f"quantized-{self.backend.name}", "takes no layers that slide", "use cache dynamic or static"
            )
        assert isinstance(layer, GroupedLayer)
        if layer.old_keys is None or layer.old_values is None:
            self._quantise(machine, layer, key, value)
            return key, value
        old_keys = self.backend.dequantised(machine, layer.old_keys)  # locals until the function returns
        old_values = self.backend.dequantised(machine, layer.old_values)
        keys = _all(machine, old_keys, layer.keys, key, key.dtype)
        values = _all(machine, old_values, layer.values, value, key.dtype)
        held = 0 if layer.keys is None else layer.keys.shape[2]
        if machine.decide(held + key.shape[2] >= self.options.residual_length):
            self._quantise(machine, layer, keys, values)
            layer.keys = layer.values = None
        else:
            layer.keys = joined(machine, layer.keys, key, "newest keys")
            layer.values = joined(machine, layer.values, value, "newest values", wide=key.dtype)
        del old_keys, old_values
        return keys, values

    def _quantise(self, machine: Machine, layer: GroupedLayer, keys: Value, values: Value) -> None:
        make, options, dtype = self.backend.quantised, self.options, keys.dtype
        layer.old_keys = make(machine, contiguous(machine, keys), options.axis_key, "keys", dtype)
        layer.old_values = make(machine, contiguous(machine, values), options.axis_value, "values", dtype)

    def reach(self, machine: Machine, tokens: Count, window: Count | None = None) -> Count:
        """source: DynamicLayer.get_mask_sizes"""
        return self.past + tokens


def _all(machine: Machine, old: Value, newest: Value | None, given: Value, empty: str) -> Value:
    """``torch.cat`` of what is quantised, what is not and what is new; ``empty`` is the dtype of what is kept where none is."""
    tokens = old.shape[2] + given.shape[2] + (0 if newest is None else newest.shape[2])
    dtypes = {old.dtype, given.dtype, empty if newest is None else newest.dtype}
    return machine.new(long_as(given, tokens), dtypes.pop() if len(dtypes) == 1 else "float32", "cat")
