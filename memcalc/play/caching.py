"""Keys and values kept from forward to forward, as transformers' caches keep them, layer by layer.

What a layer of a cache holds is known by the path of the attention that asks for it; what it held before the first forward that
is played is made when it is first asked for. Locals stand for the locals of the library's functions.

source: transformers 5.23.0 cache_utils.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcalc.arrays import Count, maximum, minimum, where
from memcalc.errors import InputError
from memcalc.play.reshape import narrow
from memcalc.play.values import Shape, Storage, Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

Pair = tuple[Value, Value]
"""Keys and values, ``(batch, heads, tokens, head dimension)``."""


class LayerCache:
    """What a cache holds of one layer.

    Attributes:
        keys: kept; None before the first forward.
        values: likewise.
        more: whatever else it holds on the device.
    """

    __slots__ = ("keys", "more", "values")

    def __init__(self, keys: Value | None = None, values: Value | None = None, more: tuple[Value, ...] = ()) -> None:
        self.keys, self.values, self.more = keys, values, more

    def storages(self) -> set[Storage]:
        """Memory it holds."""
        return {each.storage for each in (self.keys, self.values, *self.more) if each is not None}


class KeyValueCache:
    """A cache of every layer; the base of those that differ in how a layer keeps what it is given.

    Attributes:
        past: tokens that it has seen when a forward begins.
        layers: what is held of each attention, by its path.
        crossed: likewise of each attention to an encoder's states, once for all (EncoderDecoderCache.cross_attention_cache).
        static: whether it is of a fixed length, whose masks are written out for a single query (``is_compileable``).
        lasting: whether it is there before a prompt is read, and serves the next one too.
        kept_as: what is made for each layer.
    """

    static = False
    lasting = False
    kept_as: type[LayerCache] = LayerCache

    def __init__(self, past: Count) -> None:
        self.past = past
        self.layers: dict[str, LayerCache] = {}
        self.crossed: dict[str, LayerCache] = {}

    def storages(self) -> int:
        """How many pieces of memory it holds."""
        every = (*self.layers.values(), *self.crossed.values())
        return len(set().union(*(layer.storages() for layer in every)))

    def cross(self, machine: Machine, shape: Shape, dtype: str, project: Callable[[], Pair]) -> Pair:
        """Keys and values of an encoder's states: made by the first forward, read by all later ones.

        source: models/t5/modeling_t5.py:T5Attention.forward (is_updated); EncoderDecoderCache
        """
        layer = self.crossed.get(machine.path)
        if layer is None:
            layer = self.crossed[machine.path] = LayerCache()
            if machine.decide(self.past > 0):
                layer.keys = machine.before(shape, dtype, "cache", "keys of the encoder's states")
                layer.values = machine.before(shape, dtype, "cache", "values of the encoder's states")
            else:
                key, value = project()
                layer.keys = joined(machine, None, key, "keys of the encoder's states")
                layer.values = joined(machine, None, value, "values of the encoder's states")
                del key, value
        assert layer.keys is not None
        assert layer.values is not None
        return layer.keys, layer.values

    def update(self, machine: Machine, key: Value, value: Value, window: Count | None = None) -> Pair:
        """New keys and values put to those that are kept: what attention reads (Cache.update).

        ``window`` is that of a layer that slides, as its config says; None of any other.
        """
        layer = self.layers.get(machine.path)
        if layer is None:
            layer = self.layers[machine.path] = self.kept_as()
            if machine.decide(self.past > 0):
                self.found(machine, layer, key, value, window)
        return self.updated(machine, layer, key, value, window)

    def found(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> None:
        """What the layer held before the first forward that is played."""
        raise NotImplementedError

    def updated(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> Pair:
        """The same once it is there."""
        raise NotImplementedError

    def reach(self, machine: Machine, tokens: Count, window: Count | None = None) -> Count:
        """Keys that a mask of so many queries spans (get_mask_sizes)."""
        raise NotImplementedError

    def masked(self, machine: Machine, tokens: Count, window: Count | None = None) -> bool:
        """Whether a kernel is given a mask (masking_utils.py: create_causal_mask, sdpa_mask, _ignore_causal_mask_sdpa)."""
        if self.static and machine.decide(tokens == 1):
            return True
        reach = self.reach(machine, tokens, window)
        if window is not None and machine.decide(reach >= window):
            return True
        alike = (tokens == 1) | (reach == tokens) | (self.past == 0)
        return not machine.decide(alike)


class DynamicCache(KeyValueCache):
    """Keys and values that grow by concatenation; of a sliding layer the last ``window - 1``, a view of what was made last."""

    def found(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> None:
        """source: DynamicLayer.lazy_initialization, DynamicSlidingWindowLayer.lazy_initialization"""
        if window is not None:
            layer.more = (machine.before((), "int64", "cache", "the window's length"),)
        held = self.past if window is None else minimum(self.past, window)
        keys = machine.before(long_as(key, held), key.dtype, "cache", "keys")
        values = machine.before(long_as(value, held), _wider(key.dtype, value.dtype), "cache", "values")
        layer.keys, layer.values = keys, values
        if window is not None:
            layer.keys, layer.values = _last(machine, keys, window - 1), _last(machine, values, window - 1)

    def updated(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> Pair:
        """source: DynamicLayer.update, DynamicSlidingWindowLayer.update"""
        if window is None:
            layer.keys = joined(machine, layer.keys, key, "keys")
            layer.values = joined(machine, layer.values, value, "values", wide=key.dtype)
            return layer.keys, layer.values
        if not layer.more:
            layer.more = (machine.new((), "int64", "_to_copy", role="cache", name="the window's length"),)
        keys = joined(machine, layer.keys, key, "keys")
        values = joined(machine, layer.values, value, "values", wide=key.dtype)
        layer.keys = _last(machine, keys, window - 1)
        layer.values = _last(machine, values, window - 1)
        return keys, values

    def reach(self, machine: Machine, tokens: Count, window: Count | None = None) -> Count:
        """source: DynamicLayer.get_mask_sizes, DynamicSlidingWindowLayer.get_mask_sizes"""
        if window is None:
            return self.past + tokens
        return where(self.past >= window, window - 1, self.past) + tokens


class StaticCache(KeyValueCache):
    """Keys and values written into memory of a fixed length.

    Attributes:
        capacity: tokens it holds.
    """

    static = True

    def __init__(self, past: Count, capacity: Count) -> None:
        super().__init__(past)
        self.capacity = capacity

    def _length(self, window: Count | None) -> Count:
        return self.capacity if window is None else minimum(self.capacity, window)

    def found(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> None:
        """source: StaticLayer.lazy_initialization"""
        length = self._length(window)
        _check_alike(key, value)
        layer.keys = machine.before(long_as(key, length), key.dtype, "cache", "keys")
        layer.values = machine.before(long_as(value, length), value.dtype, "cache", "values")
        layer.more = (machine.before((), "int64", "cache", "how many are there"),)

    def updated(self, machine: Machine, layer: LayerCache, key: Value, value: Value, window: Count | None) -> Pair:
        """source: StaticLayer.update"""
        length = self._length(window)
        if layer.keys is None:
            _check_alike(key, value)
            layer.keys = machine.new(long_as(key, length), key.dtype, "zeros", role="cache", name="keys")
            layer.values = machine.new(long_as(value, length), value.dtype, "zeros", role="cache", name="values")
            layer.more = (machine.new((), "int64", "_to_copy", role="cache", name="how many are there"),)
        assert layer.values is not None
        if window is not None and machine.decide(self.past + key.shape[2] > length):
            return self._slid(machine, layer, key, value, length)
        counted = machine.new((key.shape[2],), "int64", "arange")
        places = machine.like(counted, "add.Tensor")
        del counted
        found = layer.keys, layer.values
        del places
        return found

    def _slid(self, machine: Machine, layer: LayerCache, key: Value, value: Value, length: Count) -> Pair:
        """source: StaticSlidingWindowLayer.update"""
        assert layer.keys is not None
        assert layer.values is not None
        full, one = machine.decide(self.past >= length), machine.decide(key.shape[2] == 1)
        if full and one:
            keys, values = machine.like(layer.keys, "roll"), machine.like(layer.values, "roll")
            index = machine.new((1,), "int64", "tensor")
            del keys, values, index
            return layer.keys, layer.values
        if machine.decide(self.past == 0):
            return key, value
        held = length - 1 if full else self.past
        keys = joined(machine, narrow(machine, layer.keys, 2, held), key)
        values = joined(machine, narrow(machine, layer.values, 2, held), value)
        return keys, values

    def reach(self, machine: Machine, tokens: Count, window: Count | None = None) -> Count:
        """source: StaticLayer.get_mask_sizes, StaticSlidingWindowLayer.get_mask_sizes"""
        length = self._length(window)
        if window is None:
            return length
        filling = where(self.past + tokens > length, self.past + tokens, length)
        return where(self.past >= length, length + tokens - 1, filling)


def _check_alike(key: Value, value: Value) -> None:
    """A static cache makes memory for both in the keys' dtype, and ``index_copy_`` refuses another.

    Raises:
        InputError: values come in another dtype, as they do under autocast where keys were turned in FP32.
    """
    if key.dtype != value.dtype:
        raise InputError(
            "inference.cache", "static", f"takes keys and values of one dtype, not {key.dtype} and {value.dtype}",
            "use a precision without autocast, or cache dynamic",
        )  # fmt: skip


def long_as(value: Value, tokens: Count) -> tuple[Count, ...]:
    """Its shape with so many tokens."""
    return (*value.shape[:2], tokens, value.shape[3])


def joined(machine: Machine, kept: Value | None, given: Value, name: str = "", wide: str = "") -> Value:
    """``torch.cat([kept, given], dim=-2)``, of the cache where it has a name; of nothing kept, given is copied all the same.

    ``wide`` is the dtype of the empty tensor that stood there first, the keys' for values too, to which ``cat`` promotes.
    """
    tokens = given.shape[2] if kept is None else kept.shape[2] + given.shape[2]
    dtype = _wider(given.dtype, wide) if wide else given.dtype
    return machine.new(long_as(given, tokens), dtype, "cat", role="cache" if name else None, name=name)


def _wider(first: str, second: str) -> str:
    """What ``torch.promote_types`` makes of two dtypes of a model under autocast: one of them, or FP32."""
    return first if first == second else "float32"


def _last(machine: Machine, value: Value, tokens: Count) -> Value:
    """The last so many tokens, or all there are: a view."""
    return narrow(machine, value, 2, minimum(value.shape[2], maximum(tokens, 1)))
