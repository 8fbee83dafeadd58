"""Litgpt's cache of keys and values: memory for every token a model may be asked for, made before the prompt is read.

source: Lightning-AI/litgpt model.py: KVCache, CausalSelfAttention.build_kv_cache, GPT.set_kv_cache, alike at 8641822b of
2023-10-16 and 2b195c7f of 2024-08-02; 17a58dfa of 2024-12-31 keeps a head for each group instead
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.arrays import Count
from memcalc.play.caching import KeyValueCache, LayerCache, Pair
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


class LitCache(KeyValueCache):
    """Buffers of a fixed length, which new keys and values are copied into by ``index_copy_``.

    Attributes:
        capacity: tokens they are long (``max_seq_length``).
        dtype: what they were made in, Fabric's default dtype; the first tokens cast them to their own.
    """

    static = True
    lasting = True

    def __init__(self, past: Count, capacity: Count, dtype: str) -> None:
        super().__init__(past)
        self.capacity, self.dtype = capacity, dtype

    def update(self, machine: Machine, key: Value, value: Value, window: Count | None = None) -> Pair:
        """All of the buffers, which attention is masked over."""
        layer = self.layers.get(machine.path)
        if layer is None:
            dtypes = (key.dtype, value.dtype) if machine.decide(self.past > 0) else (self.dtype, self.dtype)
            layer = self.layers[machine.path] = LayerCache(
                self._made(machine, key, dtypes[0], "keys"), self._made(machine, value, dtypes[1], "values")
            )
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys = self._moved(machine, layer.keys, key.dtype, "keys")
        layer.values = self._moved(machine, layer.values, value.dtype, "values")
        return layer.keys, layer.values

    def _made(self, machine: Machine, like: Value, dtype: str, name: str) -> Value:
        return machine.before((*like.shape[:2], self.capacity, like.shape[3]), dtype, "cache", name)

    def _moved(self, machine: Machine, kept: Value, dtype: str, name: str) -> Value:
        """``self.k.to(k.dtype)``: itself, but for the first tokens under autocast."""
        if kept.dtype == dtype:
            return kept
        return machine.new(kept.shape, dtype, "_to_copy", role="cache", name=name)
