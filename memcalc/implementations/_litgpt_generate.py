"""Litgpt's generate/base.py: a forward over the prompt, then one a token, each masked over all of the cache.

source: Lightning-AI/litgpt generate/base.py: generate, next_token; model.py: GPT.forward (input_pos), set_kv_cache,
build_mask_cache; lightning 2.1.0 fabric/wrappers.py:_FabricModule.forward (convert_output)
"""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.arrays import Count
from memcalc.families._forward import Batch
from memcalc.implementations._litgpt_cache import LitCache
from memcalc.implementations._litgpt_layers import Tables
from memcalc.play.machine import Machine
from memcalc.play.pointwise import to
from memcalc.play.reshape import select
from memcalc.play.values import Value
from memcalc.tape.events import Buffer
from memcalc.tensors import ITEMSIZE

SAID = ("how the next token is chosen is left out: it holds a few rows of the vocabulary once the forward is done",)


def tables_of(machine: Machine, dtype: str, tokens: Count, rotated: Count) -> Tables:
    """The prompt's, or one token's, rows of the cached tables and of the cached mask (``index_select``)."""
    cache = machine.cache
    assert isinstance(cache, LitCache)
    cos = machine.new((tokens, rotated), dtype, "index_select")
    sin = machine.new((tokens, rotated), dtype, "index_select")
    return Tables(cos, sin, machine.new((1, 1, tokens, cache.capacity), "bool", "index_select"))


def last_logits(machine: Machine, logits: Value) -> Value:
    """What is chosen from: Fabric gives the logits in FP32, of which the last token's are looked at."""
    return select(machine, to(machine, logits, "float32"), 1)


def held(rotated: Count, table: str, batch: Batch, capacity: Count) -> Iterable[tuple[Buffer, Count]]:
    """Rotary tables and a mask as long as the cache, and the positions of what is read."""
    size = capacity * rotated * ITEMSIZE[table]
    yield Buffer("cos", size, "buffer"), 1
    yield Buffer("sin", size, "buffer"), 1
    yield Buffer("mask_cache", capacity * capacity, "buffer"), 1
    yield Buffer("input_pos", batch.tokens * ITEMSIZE["int64"], "input"), 1
