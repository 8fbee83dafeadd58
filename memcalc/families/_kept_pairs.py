"""Keys and values of models with an encoder and a decoder, put to the decoder's cache where the machine has one."""

from __future__ import annotations

from collections.abc import Callable

from memcalc.layers.transformer import Attention
from memcalc.play.machine import Machine
from memcalc.play.values import Value

Pair = tuple[Value, Value]


def kept_pair(
    machine: Machine, layer: Attention, query: Value, states: Value, project: Callable[[], Pair], *, crossed: bool
) -> Pair:
    """What attention reads: the pair as it is projected, or the cache's with it, or the one of the encoder's states.

    source: transformers 5.23.0 models/bart/modeling_bart.py:BartAttention.forward; models/t5/modeling_t5.py:T5Attention.forward
    """
    cache = machine.cache
    if cache is None or not (layer.causal or crossed):
        return project()
    if crossed:
        shape = (states.shape[0], layer.heads, states.shape[1], layer.head_dim)
        return cache.cross(machine, shape, query.dtype, project)
    key, value = project()
    return cache.update(machine, key, value)
